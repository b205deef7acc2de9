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

from services.executor.gateways.messages import is_oversize, tool_use
from services.executor.usecases.ports import Ask

_log = structlog.get_logger(__name__)


class ToolGate:
    """The CLI's two questions about a call, answered by whoever drives the turn; denied while no turn runs."""

    def __init__(self) -> None:
        """Closed."""
        self._ask: Ask | None = None
        self._allowed: set[str] = set()

    def open(self, ask: Ask) -> None:
        """A turn begins; what was allowed in an earlier one is no longer."""
        self._ask = ask
        self._allowed.clear()

    def close(self) -> None:
        """The turn is over."""
        self._ask = None

    async def decide(self, data: Any, tool_use_id: str | None, _context: Any) -> dict[str, Any]:
        """The `PreToolUse` hook: asks the driver, and denies on any doubt."""
        allow, reason = False, "no turn is running"
        ask = self._ask
        if ask is not None:
            call = tool_use(
                str(tool_use_id or data.get("tool_use_id") or ""),
                str(data.get("tool_name") or ""),
                dict(data.get("tool_input") or {}),
                str(data.get("parent_tool_use_id") or ""),
            )
            try:
                if is_oversize(call):
                    raise ValueError("its input is too large to be decided on")
                decision = await ask(call)
                allow, reason = decision.allow, decision.reason
            except Exception:
                _log.exception("a tool call could not be decided; it is denied")
                reason = "the call could not be decided"
        if allow and tool_use_id:
            self._allowed.add(tool_use_id)
        return {
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse",
                "permissionDecision": "allow" if allow else "deny",
                "permissionDecisionReason": reason,
            }
        }

    async def permit(
        self, _tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResult:
        """Answers the CLI's own question about a call that the hook has let through.

        For some calls (several commands in one line, its own configuration directory) the CLI asks even then; what was
        decided, by rule or by a person, stands. A call that no hook has seen is denied.
        """
        if context.tool_use_id in self._allowed:
            return PermissionResultAllow(updated_input=tool_input)
        return PermissionResultDeny(message="the call was not decided")
