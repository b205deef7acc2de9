"""The gate before an agent's tools: a decision holds for the call and the input that it was made on."""

from __future__ import annotations

import json

import pytest
from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, ToolPermissionContext

from services.executor.domain.items import Decision, ToolUse
from services.executor.gateways.tool_gate import ToolGate

pytestmark = pytest.mark.unit


class Desk:
    """A driver that allows what does not mention `secret`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.gate = ToolGate()
        self.gate.open(self._ask)

    async def _ask(self, call: ToolUse) -> Decision:
        self.asked.append(json.loads(call.input_json))
        return Decision("secret" not in call.input_json, "it is secret")

    async def hook(self, path: str, tool_use_id: str = "toolu_1") -> bool:
        data = {"tool_name": "Read", "tool_input": {"file_path": path}}
        answer = await self.gate.decide(data, tool_use_id, None)
        return answer["hookSpecificOutput"]["permissionDecision"] == "allow"

    async def permit(self, path: str, tool_use_id: str = "toolu_1") -> bool:
        context = ToolPermissionContext(tool_use_id=tool_use_id)
        answer = await self.gate.permit("Read", {"file_path": path}, context)
        assert isinstance(answer, PermissionResultAllow | PermissionResultDeny)
        return isinstance(answer, PermissionResultAllow)


async def test_the_clis_own_question_is_answered_by_what_was_decided():
    desk = Desk()
    assert await desk.hook("a.txt")
    assert await desk.permit("a.txt")
    assert len(desk.asked) == 1


@pytest.mark.parametrize(("path", "allowed"), [("secret.txt", False), ("b.txt", True)])
async def test_another_input_is_decided_anew(path: str, allowed: bool):
    desk = Desk()
    assert await desk.hook("a.txt")
    assert await desk.permit(path) is allowed
    assert desk.asked[1:] == [{"file_path": path}]


async def test_what_no_hook_has_let_through_is_denied():
    desk = Desk()
    assert not await desk.hook("secret.txt")
    assert not await desk.permit("secret.txt")
    assert not await desk.permit("a.txt", "toolu_2")
    assert len(desk.asked) == 1


async def test_without_a_turn_nothing_is_allowed_and_the_next_turn_begins_anew():
    desk = Desk()
    assert await desk.hook("a.txt")
    desk.gate.close()
    assert not await desk.hook("b.txt", "toolu_2")
    desk.gate.open(desk._ask)
    assert not await desk.permit("a.txt")
