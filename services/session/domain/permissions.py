"""Decides tool calls: disallowed tools, then allowed tools, then the permission mode, then ask a person.

A rule is a tool's name (`Bash`, `mcp__github__*`, `mcp__github`), or a name with a pattern on the call's main argument:
`Bash(git log:*)` is a prefix of the command, `Bash(make)` the whole command, `Read(docs/**)` a glob on the path
relative to the workspace, `WebFetch(domain:example.org)` a host and its subdomains. The form is Claude Code's own.

Where a rule is in doubt it fails to the careful side: a pattern that would allow a shell command does not match when
the command holds shell syntax that could run something else, one that would disallow it matches when any part does.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

READ_TOOLS = frozenset({"Read", "Glob", "Grep", "LS", "NotebookRead", "BashOutput", "TaskOutput"})
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
EDIT_TOOLS = frozenset({"Write", "Edit", "MultiEdit", "NotebookEdit"})
"""Tools that write files."""

_PATH_ARGUMENTS = ("file_path", "notebook_path", "path")
_SHELL_TOOLS = frozenset({"Bash"})
# What makes one command line run more than its first word says: separators, substitutions, redirections, groups.
_SHELL_SYNTAX = re.compile(r"[;&|<>`$(){}\n\r\\]")
_SHELL_SEPARATORS = re.compile(r"&&|\|\||[;&|\n\r(){}`]|\$\(")
_RULE = re.compile(r"^(?P<tool>[^()]+)(?:\((?P<pattern>.*)\))?$", re.DOTALL)


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

    def decide(self, tool_name: str, tool_input: Mapping[str, Any]) -> Decision:
        """Decides one call.

        Args:
            tool_name: The tool.
            tool_input: Its input.

        Returns:
            The first decision that applies, in the order of the module's first sentence.
        """
        rule = self._first_match(self.disallowed_tools, tool_name, tool_input, allowing=False)
        if rule is not None:
            return Decision(Verdict.DENY, "DISALLOWED_TOOLS", f"disallowed by the rule {rule}")
        rule = self._first_match(self.allowed_tools, tool_name, tool_input, allowing=True)
        if rule is not None:
            return Decision(Verdict.ALLOW, "ALLOWED_TOOLS", f"allowed by the rule {rule}")
        return self._by_mode(tool_name, tool_input)

    def _by_mode(self, tool_name: str, tool_input: Mapping[str, Any]) -> Decision:
        mode = f"permission mode {self.mode}"
        if self.mode == "BYPASS_PERMISSIONS":
            return Decision(Verdict.ALLOW, "PERMISSION_MODE", mode)
        reads = tool_name in HARMLESS_TOOLS or (
            tool_name in READ_TOOLS and self._inside_workspace(tool_input)
        )
        if reads:
            return Decision(Verdict.ALLOW, "PERMISSION_MODE", mode)
        if self.mode == "PLAN":
            return Decision(Verdict.DENY, "PERMISSION_MODE", f"{mode} only reads")
        edits = tool_name in EDIT_TOOLS and self._inside_workspace(tool_input)
        if self.mode == "ACCEPT_EDITS" and edits:
            return Decision(Verdict.ALLOW, "PERMISSION_MODE", mode)
        if self.mode == "DONT_ASK":
            return Decision(Verdict.DENY, "PERMISSION_MODE", f"{mode}: not allowed beforehand")
        return Decision(Verdict.ASK, "PERMISSION_MODE", mode)

    def _first_match(
        self, rules: Iterable[str], tool_name: str, tool_input: Mapping[str, Any], *, allowing: bool
    ) -> str | None:
        for rule in rules:
            if self._matches(rule, tool_name, tool_input, allowing=allowing):
                return rule
        return None

    def _matches(self, rule: str, tool_name: str, tool_input: Mapping[str, Any], *, allowing: bool) -> bool:
        parsed = _RULE.match(rule.strip())
        if parsed is None:
            return False
        name, pattern = parsed["tool"].strip(), parsed["pattern"]
        server = name.startswith("mcp__") and name.count("__") == 1 and tool_name.startswith(f"{name}__")
        if not server and not fnmatchcase(tool_name, name):
            return False
        if pattern is None or pattern in ("", "*"):
            return True
        if tool_name in _SHELL_TOOLS:
            return _command_matches(pattern, str(tool_input.get("command", "")), allowing=allowing)
        if pattern.startswith("domain:"):
            return _host_matches(pattern.removeprefix("domain:"), str(tool_input.get("url", "")))
        path = _path_argument(tool_input)
        if path is not None:
            return self._path_matches(pattern, path)
        argument = _main_argument(tool_input)
        return argument is not None and fnmatchcase(argument, pattern)

    def _path_matches(self, pattern: str, path: str) -> bool:
        absolute = self._absolute(path)
        wanted = pattern[1:] if pattern.startswith("//") else pattern
        if not wanted.startswith("/"):
            wanted = posixpath.join(self.workspace, wanted.removeprefix("./"))
        return _glob(wanted).match(absolute) is not None

    def _absolute(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.workspace, path))

    def _inside_workspace(self, tool_input: Mapping[str, Any]) -> bool:
        path = _path_argument(tool_input)
        if path is None:
            return True
        if path.startswith("~"):
            return False
        absolute = self._absolute(path)
        return absolute == self.workspace or absolute.startswith(self.workspace.rstrip("/") + "/")


def _path_argument(tool_input: Mapping[str, Any]) -> str | None:
    for name in _PATH_ARGUMENTS:
        value = tool_input.get(name)
        if isinstance(value, str):
            return value
    return None


def _main_argument(tool_input: Mapping[str, Any]) -> str | None:
    return next((value for value in tool_input.values() if isinstance(value, str)), None)


def _host_matches(wanted: str, url: str) -> bool:
    host = (urlsplit(url).hostname or "").lower()
    wanted = wanted.lower().lstrip(".")
    return host == wanted or host.endswith(f".{wanted}")


def _command_matches(pattern: str, command: str, *, allowing: bool) -> bool:
    prefix = pattern.removesuffix(":*").rstrip() if pattern.endswith(":*") else None
    command = command.strip()
    if allowing:
        if prefix is None:
            return command == pattern.strip()
        return not _SHELL_SYNTAX.search(command) and _begins_with(command, prefix)
    if prefix is None:
        prefix = pattern.strip()
    return any(_begins_with(part, prefix) for part in _command_parts(command))


def _begins_with(command: str, prefix: str) -> bool:
    return command == prefix or command.startswith((f"{prefix} ", f"{prefix}\t"))


def _command_parts(command: str) -> list[str]:
    """Splits a command line into everything that might be run by it, each with its words normalised."""
    parts = [command]
    for part in _SHELL_SEPARATORS.split(command):
        try:
            words = shlex.split(part)
        except ValueError:
            words = part.split()
        # Assignments and wrappers before the program do not hide it; neither does a path to it.
        while words and (
            re.fullmatch(r"\w+=.*", words[0]) or words[0] in _WRAPPERS or words[0].startswith("-")
        ):
            words = words[1:]
        if words:
            parts.append(" ".join(words))
            parts.append(" ".join([posixpath.basename(words[0]), *words[1:]]))
    return [part.strip() for part in parts]


_WRAPPERS = frozenset(
    {"env", "exec", "command", "nohup", "sudo", "time", "nice", "xargs", "then", "do", "else", "!"}
)


def _glob(pattern: str) -> re.Pattern[str]:
    """Translates a path glob: `**` crosses directories, `*` and `?` do not."""
    out = []
    index = 0
    while index < len(pattern):
        if pattern.startswith("**/", index):
            out.append("(?:.*/)?")
            index += 3
        elif pattern.startswith("**", index):
            out.append(".*")
            index += 2
        elif pattern[index] == "*":
            out.append("[^/]*")
            index += 1
        elif pattern[index] == "?":
            out.append("[^/]")
            index += 1
        else:
            out.append(re.escape(pattern[index]))
            index += 1
    return re.compile("".join(out) + r"\Z", re.DOTALL)


def parse_input(input_json: str) -> Mapping[str, Any]:
    """Reads a tool's input; anything but a JSON object is an empty one, which no pattern matches."""
    try:
        value = json.loads(input_json)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
