"""Turns what the SDK reports into items: blocks with their numbers, tool calls, results, and the end of the turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from services.executor.domain.items import (
    AttemptEnded,
    BlockCompleted,
    BlockDelta,
    Item,
    Notice,
    Outcome,
    ToolResult,
    ToolUse,
)
from services.executor.domain.text import cut, input_hash, size, storable, storable_json

MAX_TEXT_BYTES = 12 * 1024 * 1024
"""Most bytes of an item's text in UTF-8: a message between services has 16 MiB, and U+FFFD triples a NUL."""


@dataclass(slots=True)
class _OpenBlock:
    number: int
    thinking: bool
    text: str = ""
    bytes: int = 0
    full: bool = False


@dataclass(slots=True)
class TurnReader:
    """Reads the messages of one turn. Blocks of the agent itself are numbered from 1; the deltas of a block and the
    message that completes it carry the same number.

    Attributes:
        structured: Whether the options ask for structured output.
    """

    structured: bool = False
    _blocks: int = 0
    _current: _OpenBlock | None = None
    _open: list[_OpenBlock] = field(default_factory=list)

    def read(self, message: Message) -> Iterator[Item]:
        """Yields the items of one message; AttemptEnded for the turn's result."""
        match message:
            case StreamEvent():
                if message.parent_tool_use_id is None:
                    yield from self._event(message.event)
            case AssistantMessage():
                yield from self._assistant(message)
            case UserMessage():
                yield from self._user(message)
            case SystemMessage():
                yield from self._system(message)
            case ResultMessage():
                yield self._result(message)
            case _:
                return

    def _next_block(self, thinking: bool) -> _OpenBlock:
        self._blocks += 1
        return _OpenBlock(self._blocks, thinking)

    def _event(self, event: dict[str, Any]) -> Iterator[Item]:
        match event.get("type"):
            case "message_start":
                # What an earlier answer left open was cut off: its text will come again, under another number.
                self._open.clear()
                self._current = None
            case "content_block_start":
                kind = event.get("content_block", {}).get("type")
                self._current = None
                if kind in ("text", "thinking"):
                    self._current = self._next_block(kind == "thinking")
                    self._open.append(self._current)
            case "content_block_delta":
                delta = event.get("delta", {})
                text = delta.get("text") if delta.get("type") == "text_delta" else delta.get("thinking")
                block = self._current
                if block is None or not isinstance(text, str) or not text:
                    return
                whole = storable(text)
                text = "" if block.full else cut(whole, MAX_TEXT_BYTES - block.bytes)
                # What the deltas of a block tell is what its message will: both are cut at the same place.
                block.full = block.full or len(text) < len(whole)
                if text:
                    yield BlockDelta(block.number, block.thinking, len(block.text), text)
                    block.text += text
                    block.bytes += size(text)
            case "content_block_stop":
                self._current = None

    def _assistant(self, message: AssistantMessage) -> Iterator[Item]:
        parent = message.parent_tool_use_id or ""
        for block in message.content:
            if isinstance(block, TextBlock | ThinkingBlock):
                thinking = isinstance(block, ThinkingBlock)
                whole = storable(block.thinking if isinstance(block, ThinkingBlock) else block.text)
                text = cut(whole, MAX_TEXT_BYTES)
                if len(text) < len(whole):
                    yield _truncated("a text of the agent")
                if text:
                    yield BlockCompleted(
                        self._number(thinking, text, parent), thinking, text, message.model, parent
                    )
            elif isinstance(block, ToolUseBlock):
                call = tool_use(block.id, block.name, block.input, parent)
                if is_oversize(call):
                    yield _truncated(f"the input of the call {block.id}")
                    call = replace(call, input_json="{}")
                yield call

    def _number(self, thinking: bool, text: str, parent: str) -> int:
        """The number of the block that this text completes: of the one whose deltas it begins with, else a new one."""
        if not parent:
            for block in self._open:
                if block.thinking == thinking and text.startswith(block.text):
                    self._open.remove(block)
                    return block.number
        return self._next_block(thinking).number

    def _user(self, message: UserMessage) -> Iterator[Item]:
        if isinstance(message.content, str):
            return
        for block in message.content:
            if isinstance(block, ToolResultBlock):
                whole = storable(_result_text(block))
                text = cut(whole, MAX_TEXT_BYTES)
                if len(text) < len(whole):
                    yield _truncated(f"the result of the call {block.tool_use_id}")
                yield ToolResult(block.tool_use_id, text, bool(block.is_error))

    def _system(self, message: SystemMessage) -> Iterator[Item]:
        if message.subtype == "api_retry":
            data = message.data
            yield Notice(
                "MODEL_RETRY",
                f"the model API answered {data.get('error_status') or 'nothing'}; try {data.get('attempt', '?')}"
                f" of {data.get('max_retries', '?')}",
            )
        elif message.subtype == "compact_boundary":
            yield Notice("CONTEXT_COMPACTED", "the conversation was summarised to make room")

    def _result(self, message: ResultMessage) -> AttemptEnded:
        outcome, reason, text = _outcome(message)
        structured = ""
        if message.structured_output is not None:
            structured = json.dumps(storable_json(message.structured_output), ensure_ascii=False)
            if size(structured) > MAX_TEXT_BYTES:
                outcome, reason, structured = Outcome.FAILED, "STRUCTURED_OUTPUT_TOO_LARGE", ""
                text = f"the structured output is larger than {MAX_TEXT_BYTES} bytes"
        elif self.structured and outcome is Outcome.SUCCEEDED:
            outcome, reason = Outcome.FAILED, "STRUCTURED_OUTPUT_MISSING"
            text = "the agent ended without the structured output that was asked for"
        return AttemptEnded(
            outcome=outcome,
            reason=reason,
            message=storable(text),
            cli_session_id=message.session_id,
            structured_output_json=structured,
        )


def tool_use(tool_use_id: str, name: str, tool_input: dict[str, Any], parent: str) -> ToolUse:
    """Describes a tool call; its hash is of the input as the model wrote it."""
    clean = storable_json(tool_input)
    return ToolUse(
        tool_use_id,
        storable(name),
        json.dumps(clean, ensure_ascii=False),
        input_hash(name, tool_input),
        parent,
    )


def is_oversize(call: ToolUse) -> bool:
    """Whether a call's input is too large to be told; JSON that was cut would be none, so it is not told at all."""
    return size(call.input_json) > MAX_TEXT_BYTES


def _truncated(what: str) -> Notice:
    return Notice("TEXT_TRUNCATED", f"{what} is larger than {MAX_TEXT_BYTES} bytes and was cut")


def _result_text(block: ToolResultBlock) -> str:
    if block.content is None:
        return ""
    if isinstance(block.content, str):
        return block.content
    parts = []
    for part in block.content:
        if part.get("type") == "text":
            parts.append(str(part.get("text", "")))
        else:
            parts.append(f"[{part.get('type', 'content')}]")
    return "\n".join(parts)


def _outcome(message: ResultMessage) -> tuple[Outcome, str, str]:
    if message.terminal_reason in ("aborted_streaming", "aborted_tools"):
        return Outcome.INTERRUPTED, "", ""
    if message.subtype == "error_max_turns":
        return Outcome.FAILED, "MAX_TURNS", "the turn took as many model calls as it may"
    if message.subtype == "error_max_structured_output_retries":
        return Outcome.FAILED, "STRUCTURED_OUTPUT_INVALID", "the agent did not produce output of the schema"
    if message.is_error or message.subtype != "success":
        if message.api_error_status is not None:
            reason = f"the model API answered {message.api_error_status}"
            return Outcome.FAILED, "MODEL_ERROR", reason
        return Outcome.FAILED, "AGENT_ERROR", (message.result or message.subtype)[:500]
    return Outcome.SUCCEEDED, "", ""


def answers(message: ResultMessage, message_id: str) -> bool:
    """Whether a result is that of our message; one that names no message is taken as such."""
    named = message.user_message_uuids or ([message.user_message_uuid] if message.user_message_uuid else [])
    return not named or message_id in named


def goes_on(message: Message) -> bool:
    """Whether the turn is not over with what the model has said last: tools run, or have run."""
    if isinstance(message, StreamEvent):
        event = message.event
        return (
            event.get("type") == "message_delta" and event.get("delta", {}).get("stop_reason") == "tool_use"
        )
    return isinstance(message, UserMessage)
