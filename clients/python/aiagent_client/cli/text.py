"""Text from agents and servers, made safe and short enough for a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from aiagent.events.v1.content_pb2 import Content, ToolUse

# What a terminal obeys instead of showing: C0 (but tab and newline), DEL, C1, and the marks that turn the direction of
# text round. Agents write what strangers told them; none of it may move the cursor, set a title or hide a command.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NEWLINES: Final = re.compile("\r\n?")
# Argument that tells most about a call of the tool.
_MAIN_ARGUMENT: Final = {
    "Bash": "command",
    "BashOutput": "bash_id",
    "Edit": "file_path",
    "Glob": "pattern",
    "Grep": "pattern",
    "KillShell": "shell_id",
    "MultiEdit": "file_path",
    "NotebookEdit": "notebook_path",
    "Read": "file_path",
    "Skill": "skill",
    "Agent": "description",
    "Task": "description",
    "WebFetch": "url",
    "WebSearch": "query",
    "Write": "file_path",
}


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def safe(text: str) -> str:
    """Returns the text with every control character but tab and newline replaced by a picture of it."""
    return _CONTROL.sub(_picture, _NEWLINES.sub("\n", text))


def one_line(text: str, width: int = 200) -> str:
    """Returns the text on one line of at most `width` characters, made safe."""
    short = " ".join(safe(text[: width * 4]).split())
    return short if len(short) <= width else short[: max(1, width - 1)] + "…"


def tool_input(tool_use: ToolUse) -> dict[str, Any]:
    """Returns a tool call's input; empty when it was too large for the log."""
    found: dict[str, Any] = MessageToDict(tool_use.input) if tool_use.HasField("input") else {}
    return found


def main_argument(tool_use: ToolUse) -> str:
    """Returns what best tells one call of a tool from another, not yet made safe."""
    if tool_use.HasField("input_content"):
        return tool_use.input_content.text
    values = tool_input(tool_use)
    named = values.get(_MAIN_ARGUMENT.get(tool_use.tool_name, ""))
    if isinstance(named, str) and named:
        return named
    for value in values.values():
        if isinstance(value, str) and value:
            return value
    return json.dumps(plain_numbers(values), ensure_ascii=False) if values else ""


def in_workspace(text: str, session_id: str) -> str:
    """Returns the text with paths in the session's workspace made relative, for lines that have no room."""
    return re.sub(rf"(?:/[^\s'\"]*)?/workspaces/{re.escape(session_id)}/?", "", text) if session_id else text


def plain_numbers(value: Any) -> Any:
    """Returns the value with whole numbers as integers: a protobuf Struct knows floating point only."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: plain_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain_numbers(part) for part in value]
    return value


def json_text(value: Any) -> str:
    """Returns a value of a protobuf Struct as people write it: JSON, with whole numbers as such."""
    return json.dumps(plain_numbers(value), ensure_ascii=False)


def summary_of(content: Content, width: int) -> str:
    """Returns a tool result's first line, and how much more there is."""
    lines = [line for line in safe(content.text).split("\n") if line.strip()]
    if not lines:
        return "(no output)"
    more = f"  (+{len(lines) - 1} lines)" if len(lines) > 1 else ""
    if content.HasField("reference"):
        more = f"  ({size(content.reference.size_bytes)} in all)"
    return one_line(lines[0], max(20, width - len(more))) + more


def size(count: int) -> str:
    """Returns a number of bytes as people write it."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(milliseconds: float) -> str:
    """Returns a time span as people write it."""
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def money(dollars: float) -> str:
    """Returns a price as people write it."""
    return f"${dollars:.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.4f}"


def count_of(number: int, noun: str) -> str:
    """Returns `1 file`, `2 files`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
