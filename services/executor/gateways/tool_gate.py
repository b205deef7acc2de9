"""The gate before an agent's tools: no call runs that the driver of the turn has not allowed."""

from __future__ import annotations

from typing import Any

import structlog
from claude_agent_sdk import (
    PermissionResult,
    PermissionResultAllow,
    PermissionResultDeny,
    ToolPermissionContext,
)

from services.executor.domain.items import Decision, ToolUse
from services.executor.gateways.messages import is_oversize, tool_use
from services.executor.usecases.ports import Ask

_log = structlog.get_logger(__name__)


class ToolGate:
    """The CLI's two questions about a call, answered by whoever drives the turn; denied while no turn runs."""

    def __init__(self) -> None:
        """Closed."""
        self._ask: Ask | None = None
        self._allowed: dict[str, set[str]] = {}
        """The hashes of the inputs that were allowed, by the call's id."""

    def open(self, ask: Ask) -> None:
        """A turn begins; what was allowed in an earlier one is no longer."""
        self._ask = ask
        self._allowed.clear()

    def close(self) -> None:
        """The turn is over."""
        self._ask = None

    async def decide(self, data: Any, tool_use_id: str | None, _context: Any) -> dict[str, Any]:
        """The `PreToolUse` hook: asks the driver, and denies on any doubt."""
        call = tool_use(
            str(tool_use_id or data.get("tool_use_id") or ""),
            str(data.get("tool_name") or ""),
            dict(data.get("tool_input") or {}),
            str(data.get("parent_tool_use_id") or ""),
        )
        decision = await self._decided(call)
        return {
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse",
                "permissionDecision": "allow" if decision.allow else "deny",
                "permissionDecisionReason": decision.reason,
            }
        }

    async def _decided(self, call: ToolUse) -> Decision:
        if self._ask is None:
            return Decision(False, "no turn is running")
        try:
            if is_oversize(call):
                raise ValueError("its input is too large to be decided on")
            decision = await self._ask(call)
        except Exception:
            _log.exception("a tool call could not be decided; it is denied")
            return Decision(False, "the call could not be decided")
        if decision.allow and call.tool_use_id:
            self._allowed.setdefault(call.tool_use_id, set()).add(call.input_hash)
        return decision

    async def permit(
        self, tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResult:
        """Answers the CLI's own question about a call that the hook has let through.

        For some calls (several commands in one line, its own configuration directory) the CLI asks even then; what was
        decided, by rule or by a person, stands. With another input than that the call is decided anew; one that no hook
        has seen is denied.
        """
        decision = Decision(False, "the call was not decided")
        allowed = self._allowed.get(context.tool_use_id or "")
        if allowed:
            call = tool_use(context.tool_use_id or "", tool_name, tool_input, "")
            same = call.input_hash in allowed
            decision = Decision(True, "") if same else await self._decided(call)
        if decision.allow:
            return PermissionResultAllow(updated_input=tool_input)
        return PermissionResultDeny(message=decision.reason)
