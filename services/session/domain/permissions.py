"""Decides tool calls: disallowed tools, then allowed tools, then the permission mode, then ask a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.session.domain import paths
from services.session.domain.rules import (
    EDIT_TOOLS,
    FILE_READ_TOOLS,
    FILE_TOOLS,
    SEARCH_TOOLS,
    Rule,
    paths_of,
)

READ_TOOLS = FILE_READ_TOOLS | SEARCH_TOOLS | {"BashOutput", "TaskOutput"}
"""Tools that only read the workspace."""
HARMLESS_TOOLS = frozenset(
    {
        "TodoWrite",
        "TodoRead",
        "Task",
        "Agent",
        "ExitPlanMode",
        "EnterPlanMode",
        "StructuredOutput",
        "ToolSearch",
    }
    | {"TaskCreate", "TaskGet", "TaskList", "TaskUpdate"}
)
"""Tools that touch nothing themselves: what a subagent calls is decided call by call."""
CONFIGURATION = frozenset({".git", ".claude", ".mcp.json", ".gitconfig", ".gitmodules", ".envrc"})
"""Files and directories that make other programs run things: to write there is more than to edit."""


class Verdict(StrEnum):
    """What is to be done with a tool call."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    ASK = "ASK"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and what gave it.

    Attributes:
        verdict: What is to be done.
        source: A name of `events.v1.ToolDecision.Source`.
        reason: The rule or the mode, in words.
    """

    verdict: Verdict
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class PermissionRules:
    """The rules of one session.

    Attributes:
        mode: A name of `session.v1.AgentOptions.PermissionMode`.
        allowed_tools: Rules whose calls run without a question.
        disallowed_tools: Rules whose calls never run.
        workspace: Absolute path of the session's workspace.
    """

    mode: str
    allowed_tools: Sequence[str]
    disallowed_tools: Sequence[str]
    workspace: str

    @classmethod
    def from_options(cls, options: Mapping[str, Any], workspace: str) -> PermissionRules:
        """Reads the rules from the JSON form of `AgentOptions`."""
        mode = str(options.get("permission_mode") or "DEFAULT")
        return cls(
            mode="DEFAULT" if mode == "PERMISSION_MODE_UNSPECIFIED" else mode,
            allowed_tools=tuple(options.get("allowed_tools") or ()),
            disallowed_tools=tuple(options.get("disallowed_tools") or ()),
            workspace=workspace,
        )

    def decide(self, tool_name: str, tool_input: Mapping[str, Any] | None) -> Decision:
        """Decides one call.

        Args:
            tool_name: The tool.
            tool_input: Its input; None if it could not be read, and then it is denied.

        Returns:
            The first decision that applies, in the order of the module's first sentence.
        """
        for text in self.disallowed_tools:
            if Rule.read(text).disallows(tool_name, tool_input, self.workspace):
                return Decision(Verdict.DENY, "DISALLOWED_TOOLS", f"disallowed by the rule {text}")
        if tool_input is None:
            return Decision(Verdict.DENY, "SAFETY", "its input cannot be read")
        for text in self.allowed_tools:
            if Rule.read(text).allows(tool_name, tool_input, self.workspace):
                return Decision(Verdict.ALLOW, "ALLOWED_TOOLS", f"allowed by the rule {text}")
        return self._by_mode(tool_name, tool_input)

    def _by_mode(self, tool_name: str, tool_input: Mapping[str, Any]) -> Decision:
        mode = f"permission mode {self.mode}"
        if self.mode == "BYPASS_PERMISSIONS":
            return Decision(Verdict.ALLOW, "PERMISSION_MODE", mode)
        if self._reads(tool_name, tool_input):
            return Decision(Verdict.ALLOW, "PERMISSION_MODE", mode)
        if self.mode == "PLAN":
            return Decision(Verdict.DENY, "PERMISSION_MODE", f"{mode} only reads")
        if self.mode == "ACCEPT_EDITS" and self._edits(tool_name, tool_input):
            return Decision(Verdict.ALLOW, "PERMISSION_MODE", mode)
        if self.mode == "DONT_ASK":
            return Decision(Verdict.DENY, "PERMISSION_MODE", f"{mode}: not allowed beforehand")
        return Decision(Verdict.ASK, "PERMISSION_MODE", mode)

    def _reads(self, tool_name: str, tool_input: Mapping[str, Any]) -> bool:
        if tool_name in HARMLESS_TOOLS:
            # A subagent with a work tree of its own begins with git, which runs the repository's hooks.
            return not tool_input.get("isolation")
        return tool_name in READ_TOOLS and (
            tool_name not in FILE_TOOLS or self._inside_workspace(tool_name, tool_input)
        )

    def _edits(self, tool_name: str, tool_input: Mapping[str, Any]) -> bool:
        return (
            tool_name in EDIT_TOOLS
            and self._inside_workspace(tool_name, tool_input)
            and not any(
                part.casefold() in CONFIGURATION
                for path in paths_of(tool_name, tool_input, self.workspace) or ()
                for part in path.removeprefix(self.workspace).split("/")
            )
        )

    def _inside_workspace(self, tool_name: str, tool_input: Mapping[str, Any]) -> bool:
        found = paths_of(tool_name, tool_input, self.workspace)
        workspace = paths.normal(self.workspace, "/")
        return found is not None and all(paths.within(path, workspace) for path in found)


def parse_input(input_json: str) -> Mapping[str, Any] | None:
    """Reads a tool's input; None if it is no JSON object, or one that is nested too deep to be read."""
    try:
        value = json.loads(input_json)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
