"""Permission rules: their form, and which calls they match.

A rule is a tool's name (`Bash`, `mcp__github__*`, `mcp__github`), or a name with a pattern on the call's main argument:
`Bash(git log:*)` is a prefix of the command, `Bash(make)` the whole command, `Read(docs/**)` a glob on the path
relative to the workspace, `WebFetch(domain:example.org)` a host and its subdomains. The form is Claude Code's own.

Where a rule is in doubt it fails to the careful side: one that allows does not match, one that disallows does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from services.session.domain import paths, shell
from services.session.domain.errors import invalid_request

EDIT_TOOLS = frozenset({"Write", "Edit", "MultiEdit", "NotebookEdit"})
"""Tools that write files."""
FILE_READ_TOOLS = frozenset({"Read", "NotebookRead"})
"""Tools that read one file."""
SEARCH_TOOLS = frozenset({"Glob", "Grep", "LS"})
"""Tools that read a directory and what is below it; without a path, where the agent stands."""
FILE_TOOLS = EDIT_TOOLS | FILE_READ_TOOLS | SEARCH_TOOLS
SHELL_TOOLS = frozenset({"Bash", "Monitor", "PowerShell"})
"""Tools that run a command line, given as `command`."""

_FORM = re.compile(r"(?P<name>[A-Za-z0-9_.:@*?-]{1,128})(?:\((?P<pattern>.*)\))?", re.DOTALL)
_WORDS = re.compile(r"[\w*?-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
_PATH_ARGUMENTS = ("file_path", "notebook_path", "path")
_SEARCH_PATTERNS = {"Glob": "pattern", "Grep": "glob"}
_MAIN_ARGUMENTS = {"Skill": "skill", "Agent": "subagent_type", "WebSearch": "query", "WebFetch": "url"}
_SAME_TOOL = {"Task": "Agent", "task": "agent"}
# A URL whose host every program reads alike: no user, no escapes, no letters that look like others.
_PLAIN_URL = re.compile(r"https?://(?P<host>[a-z0-9._-]+)(:\d+)?([/?#].*)?", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that has been read.

    Attributes:
        text: As it was written.
        name: The tool's name, or a glob of names; empty if the rule has not even the form of one.
        pattern: What is asked of the main argument; None for any call of the tool.
        fault: What is wrong with it, in words; None if nothing is.
    """

    text: str
    name: str
    pattern: str | None
    fault: str | None

    @classmethod
    def read(cls, text: str) -> Rule:
        """Reads a rule; of a malformed one, as much as can be told."""
        form = _FORM.fullmatch(text.strip())
        if form is None or _CONTROL.search(text):
            return cls(text, "", None, "is not of the form `Tool` or `Tool(pattern)`, on one line")
        return cls(text, form["name"], form["pattern"], _fault(form["name"], form["pattern"]))

    def allows(self, tool_name: str, tool_input: Mapping[str, Any], workspace: str) -> bool:
        """Whether the rule allows a call: it is well formed and covers all that the call names."""
        if self.fault is not None or not _names(self.name, tool_name):
            return False
        if self.pattern is None or self.pattern == "*":
            return True
        if tool_name in SHELL_TOOLS:
            command = tool_input.get("command")
            return isinstance(command, str) and shell.allows(self.pattern, command)
        if self.pattern.startswith("domain:"):
            return _host_allowed(self.pattern.removeprefix("domain:"), tool_input.get("url"))
        if tool_name in FILE_TOOLS:
            found = paths_of(tool_name, tool_input, workspace)
            wanted = paths.absolute_pattern(self.pattern, workspace)
            return found is not None and all(paths.glob_matches(wanted, path) for path in found)
        values = _arguments(tool_name, tool_input)
        return bool(values) and all(
            isinstance(value, str) and fnmatchcase(value, self.pattern) for value in values
        )

    def disallows(self, tool_name: str, tool_input: Mapping[str, Any] | None, workspace: str) -> bool:
        """Whether the rule disallows a call: something in it matches, or it cannot be told.

        Args:
            tool_name: The tool.
            tool_input: Its input; None if it could not be read.
            workspace: Absolute path of the session's workspace.
        """
        if not self._concerns(tool_name):
            return False
        if self.fault is not None or tool_input is None or self.pattern is None or self.pattern == "*":
            return True
        if tool_name in SHELL_TOOLS:
            command = tool_input.get("command")
            return not isinstance(command, str) or shell.disallows(self.pattern, command)
        if self.pattern.startswith("domain:"):
            return _host_disallowed(self.pattern.removeprefix("domain:"), tool_input.get("url"))
        if tool_name in FILE_TOOLS:
            return self._disallows_path(tool_name, tool_input, workspace)
        return any(fnmatchcase(text, self.pattern) for text in _texts(tool_input))

    def _concerns(self, tool_name: str) -> bool:
        # A rule that disallows must not miss its tool for its spelling.
        names = [self.name] if self.name else _WORDS.findall(self.text)
        if not names or any(_names(name.casefold(), tool_name.casefold()) for name in names):
            return True
        if tool_name in SHELL_TOOLS and any(_names(name.casefold(), "bash") for name in names):
            return True
        # As with Claude Code: a pattern for the one tool is for those that do the same.
        same = {"edit": EDIT_TOOLS, "read": FILE_READ_TOOLS | SEARCH_TOOLS}
        return self.pattern is not None and tool_name in same.get(self.name.casefold(), ())

    def _disallows_path(self, tool_name: str, tool_input: Mapping[str, Any], workspace: str) -> bool:
        found = paths_of(tool_name, tool_input, workspace)
        if found is None:
            return True
        pattern = str(self.pattern)
        if pattern.startswith("~"):
            # The agent's home is not known here: the rest of it is looked for in any directory.
            pattern = "/**/" + pattern.partition("/")[2]
        wanted = paths.absolute_pattern(pattern, workspace)
        # Whoever may not read a file may not have it searched either; its name is no secret.
        if tool_name == "Grep" or (tool_name in SEARCH_TOOLS and self.name.casefold() != "read"):
            return any(paths.reaches(path, wanted) for path in found)
        return any(paths.covers(wanted, path) for path in found)


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the rules in the JSON form of `AgentOptions`.

    Raises:
        ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, for the first rule that is malformed.
    """
    for field in ("allowed_tools", "disallowed_tools"):
        for index, text in enumerate(options.get(field) or ()):
            fault = Rule.read(text).fault
            if fault is not None:
                raise invalid_request(f"sdk_options.{field}[{index}]", f"the rule {text[:100]!r} {fault}")


def _fault(name: str, pattern: str | None) -> str | None:
    if pattern is None:
        return None
    if not pattern.strip():
        return "has nothing between its parentheses"
    if not _balanced(pattern):
        return "has a parenthesis without its other half"
    if name in SHELL_TOOLS and not pattern.strip().removesuffix(":*").strip():
        return "has no command before `:*`"
    if pattern.startswith("domain:") and not _wanted_host(pattern.removeprefix("domain:")):
        return "has no host after `domain:`"
    if name in FILE_TOOLS:
        fault = paths.pattern_fault(pattern)
        return f"has a pattern that is none: {fault}" if fault else None
    return None


def _balanced(pattern: str) -> bool:
    depth = 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def _names(wanted: str, tool_name: str) -> bool:
    if wanted.startswith("mcp__") and wanted.count("__") == 1 and tool_name.startswith(f"{wanted}__"):
        return True
    wanted, tool_name = (_SAME_TOOL.get(name, name) for name in (wanted, tool_name))
    return fnmatchcase(tool_name, wanted)


def paths_of(tool_name: str, tool_input: Mapping[str, Any], workspace: str) -> list[str] | None:
    """The paths that a call of a file tool names, in their one spelling.

    A search without a path begins where the agent stands, which the CLI keeps inside the workspace.

    Args:
        tool_name: One of `FILE_TOOLS`.
        tool_input: Its input.
        workspace: Absolute path of the session's workspace, from which relative paths count.

    Returns:
        The paths; None if it cannot be told where the call reaches.
    """
    found = []
    for name in _PATH_ARGUMENTS:
        value = tool_input.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or len(value) > paths.MAX_PATH_CHARACTERS:
            return None
        value = value.strip()
        if value.startswith("~") or "\0" in value:
            return None
        found.append(paths.normal(value, workspace))
        if found[-1].count("/") > paths.MAX_PATH_PARTS:
            return None
    if tool_name not in SEARCH_TOOLS:
        return found or None
    pattern = tool_input.get(_SEARCH_PATTERNS.get(tool_name, ""))
    root = found or [workspace]
    if pattern is None:
        return root
    if not isinstance(pattern, str) or len(pattern) > paths.MAX_PATH_CHARACTERS:
        return None
    begin = re.split(r"[*?\[{!\\]", pattern.strip(), maxsplit=1)[0]
    if begin.startswith("~") or re.search(r"(^|[^\w.])\.\.($|[^\w.])|[{,][/~]", pattern):
        return None
    if not begin.startswith("/"):
        return root
    return [*found, paths.normal("/" + begin.rpartition("/")[0], workspace)]


def _arguments(tool_name: str, tool_input: Mapping[str, Any]) -> list[Any]:
    """What a pattern of a tool of no special kind is about: its main argument, or everything, if none is known."""
    main = _MAIN_ARGUMENTS.get(_SAME_TOOL.get(tool_name, tool_name))
    if main is None:
        return list(tool_input.values())
    return [tool_input[main]] if main in tool_input else []


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, however deep; without recursion, since an input may be deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _wanted_host(text: str) -> str:
    return text.strip().lower().removeprefix("*").strip(".")


def _is_host(host: str, wanted: str) -> bool:
    return host == wanted or host.endswith(f".{wanted}")


def _host_allowed(wanted: str, url: Any) -> bool:
    plain = _PLAIN_URL.fullmatch(url) if isinstance(url, str) else None
    return plain is not None and _is_host(plain["host"].lower(), _wanted_host(wanted))


def _host_disallowed(wanted: str, url: Any) -> bool:
    plain = _PLAIN_URL.fullmatch(url.strip()) if isinstance(url, str) else None
    return plain is None or _is_host(plain["host"].lower().strip("."), _wanted_host(wanted))
