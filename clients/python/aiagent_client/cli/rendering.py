"""The live stream of a session as a person reads it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.status import Status
from rich.text import Text

from aiagent.events.v1.content_pb2 import Content, ToolUse
from aiagent.events.v1.session_event_pb2 import (
    AssistantMessage,
    PermissionResolved,
    SessionEvent,
    ToolDecision,
    TurnEnded,
)
from aiagent.session.v1.session_service_pb2 import TextDelta
from aiagent_client.cli.text import (
    count_of,
    duration,
    in_workspace,
    main_argument,
    money,
    one_line,
    safe,
    size,
    summary_of,
)
from aiagent_client.cli.wrapping import WordWrap

# Code points of a user's message that are shown when looking on.
_MESSAGE_SHOWN: Final = 2_000
_ENDINGS: Final = {
    "SUCCEEDED": ("✓", "green", "done"),
    "FAILED": ("✗", "red", "failed"),
    "INTERRUPTED": ("■", "yellow", "interrupted"),
    "TIMED_OUT": ("✗", "red", "took too long"),
    "BUDGET_EXCEEDED": ("✗", "red", "the budget is used up"),
}


@dataclass(slots=True)
class _Call:
    tool_use: ToolUse
    denied: bool = False


@dataclass(slots=True)
class Renderer:
    """Prints items of a watch as they come.

    The agent's text goes to `out`, all else to `notes`: on a terminal both are the same, in a pipe the text alone
    is the result. `history` prints users' messages, too.
    """

    out: Console
    notes: Console
    session_id: str = ""
    thinking: bool = True
    history: bool = False
    # What is waited for before an attempt starts.
    before_start: str = "starting"
    ended: TurnEnded | None = None
    _status: Status | None = None
    # Code points of each block that have been printed, by (turn, attempt, block).
    _printed: dict[tuple[str, int, int], int] = field(default_factory=dict)
    _calls: dict[str, _Call] = field(default_factory=dict)
    _turn_calls: int = 0
    _last_call: str = ""
    # Whether the last line printed, and which of the two consoles printed it, is still open.
    _open: Console | None = None
    _open_style: str = ""
    _wrap: WordWrap = field(default_factory=lambda: WordWrap(0))
    _something: bool = False
    _after_text: bool = False

    def show(self, item: SessionEvent | TextDelta) -> None:
        """Prints one item."""
        if isinstance(item, TextDelta):
            self._delta(item)
        else:
            self._event(item)

    def note(self, text: str, style: str = "dim") -> None:
        """Prints a line of our own; `text` must be safe."""
        self.line((text, style))

    def idle(self, text: str | None) -> None:
        """Shows what is being waited for, at the beginning of a line and on a terminal only; None shows nothing."""
        if text is None or self._open is not None or not sys.stderr.isatty():
            if self._status is not None:
                self._status.stop()
                self._status = None
        elif self._status is None:
            self._status = self.notes.status(Text(text, style="dim"), spinner_style="cyan")
            self._status.start()
        else:
            self._status.update(Text(text, style="dim"))

    def finish(self) -> None:
        """Ends the open line and the spinner."""
        self._close_line()
        self.idle(None)

    def line(self, *parts: str | tuple[str, str], gap: bool = False, wrap: bool = False) -> None:
        """Prints a line made of texts, or of texts with their styles; with `wrap` it is broken between words."""
        self._close_line()
        self.idle(None)
        if gap:
            self._gap(self.notes)
        self._something = True
        self.notes.print(Text.assemble(*parts), soft_wrap=not wrap or not self.notes.is_terminal)

    def prompting(self, console: Console | None) -> None:
        """Tells that a prompt stands at the end of an open line; None that it was answered."""
        self.idle(None)
        self._open = console

    def _delta(self, delta: TextDelta) -> None:
        key = (delta.turn_id, delta.attempt, delta.block)
        known = self._printed.get(key, 0)
        new = delta.text[max(0, known - delta.text_offset) :]
        self._printed[key] = max(known, delta.text_offset + len(delta.text))
        self._write(new, thinking=delta.thinking)

    def _event(self, event: SessionEvent) -> None:
        payload = event.payload
        match payload.WhichOneof("kind"):
            case "user_message":
                self._user_message(payload.user_message.content)
            case "assistant_message":
                self._assistant_message(event.turn_id, payload.assistant_message)
            case "tool_use":
                self._tool_use(payload.tool_use)
            case "tool_decision":
                self._decision(payload.tool_decision)
            case "tool_result":
                result = payload.tool_result
                self._result(result.tool_use_id, result.content, result.is_error)
            case "permission_requested":
                self.idle("waiting for a person")
            case "permission_resolved":
                self._resolved(payload.permission_resolved)
            case "attempt_started":
                if payload.attempt_started.attempt > 1:
                    self.note(
                        f"↻ attempt {payload.attempt_started.attempt}: what was not finished begins anew"
                    )
                self.idle("working")
            case "notice":
                self.note(f"· {one_line(payload.notice.message or payload.notice.code)}")
            case "interrupt_requested":
                self.idle("stopping")
            case "workspace_uploaded":
                uploaded = payload.workspace_uploaded
                self.note(f"· {count_of(uploaded.file_count, 'file')} uploaded, {size(uploaded.size_bytes)}")
            case "turn_ended":
                self._turn_ended(payload.turn_ended)

    def _user_message(self, content: Content) -> None:
        self._turn_calls = 0
        if self.history:
            self.line(
                ("> ", "bold cyan"), (safe(content.text).rstrip().replace("\n", "\n  "), "bold"), gap=True
            )
        self.idle(self.before_start)

    def _assistant_message(self, turn_id: str, message: AssistantMessage) -> None:
        thinking = message.type == AssistantMessage.THINKING
        if message.parent_tool_use_id:
            # A subagent's words have no deltas, and are not the answer.
            if self.thinking or not thinking:
                self.note(f"  │ {one_line(message.content.text, 300)}")
        else:
            key = (turn_id, message.attempt, message.block)
            printed = self._printed.pop(key, 0)
            self._write(message.content.text[printed:], thinking=thinking)
            self._close_line()
            if message.content.HasField("reference") and printed <= len(message.content.text):
                self.note(f"[cut; {size(message.content.reference.size_bytes)} in all]")
        self.idle("working")

    def _tool_use(self, tool_use: ToolUse) -> None:
        self._calls[tool_use.tool_use_id] = _Call(tool_use)
        self._turn_calls += 1
        self._last_call = tool_use.tool_use_id
        indent = "  │ " if tool_use.parent_tool_use_id else ""
        name = one_line(tool_use.tool_name, 60)
        room = self.notes.width - len(indent) - len(name) - 5
        argument = self._argument(tool_use, room)
        # A row of calls stands together, apart from the text before it.
        self.line((f"{indent}● ", "cyan"), (name, "bold"), "  ", argument, gap=self._after_text)
        self._after_text = False
        self.idle(f"running {name}")

    def _argument(self, tool_use: ToolUse, width: int) -> str:
        return one_line(in_workspace(main_argument(tool_use), self.session_id), max(20, width))

    def _decision(self, decision: ToolDecision) -> None:
        if decision.decision != ToolDecision.DENY:
            return
        call = self._calls.get(decision.tool_use_id)
        if call is not None:
            call.denied = True
        by = ToolDecision.Source.Name(decision.source).lower().replace("_", " ")
        reason = f": {one_line(decision.reason, 300)}" if decision.reason else ""
        self._outcome(decision.tool_use_id, f"✗ denied ({by}){reason}", "red")

    def _result(self, tool_use_id: str, content: Content, is_error: bool) -> None:
        call = self._calls.pop(tool_use_id, None)
        if call is not None and call.denied:
            # The result only repeats the denial.
            self.idle("working")
            return
        width = max(30, self.notes.width - 6)
        shown = Content()
        shown.CopyFrom(content)
        shown.text = in_workspace(content.text[:100_000], self.session_id)
        if is_error:
            self._outcome(tool_use_id, f"✗ {summary_of(shown, width)}", "red", call)
        else:
            self._outcome(tool_use_id, f"⎿ {summary_of(shown, width)}", "dim", call)

    def _outcome(self, tool_use_id: str, text: str, style: str, call: _Call | None = None) -> None:
        if call is not None and self._last_call != tool_use_id:
            # Calls that ran side by side: say whose result this is.
            name = one_line(call.tool_use.tool_name, 60)
            self.note(f"  ● {name} {self._argument(call.tool_use, self.notes.width - len(name) - 5)}")
        self.note(f"  {text}", style)
        self._last_call = ""
        self.idle("working")

    def _resolved(self, resolved: PermissionResolved) -> None:
        match resolved.state:
            case "ALLOWED":
                self.note("  ✓ allowed", "green")
            case "EXPIRED":
                self.note("  ✗ nobody answered in time", "yellow")
            case "CANCELLED":
                self.note("  · the question fell away")
        self.idle("working")

    def _turn_ended(self, ended: TurnEnded) -> None:
        self.ended = ended
        mark, colour, word = _ENDINGS.get(ended.state, ("·", "", one_line(ended.state.lower())))
        why = (
            f": {one_line(ended.failure.message or ended.failure.reason, 500)}"
            if ended.HasField("failure")
            else ""
        )
        usage = ended.usage
        cached = f" ({usage.cache_read_tokens:,} from cache)" if usage.cache_read_tokens else ""
        tokens_in = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        parts = [
            duration(ended.duration_ms),
            f"{tokens_in:,} tokens in{cached}, {usage.output_tokens:,} out",
            money(ended.cost_usd),
        ]
        if self._turn_calls:
            parts.append(count_of(self._turn_calls, "tool call"))
        self.line((f"{mark} {word}{why}", colour), (f"  {' · '.join(parts)}", "dim"), gap=True)
        self._calls.clear()
        self._printed.clear()

    def _write(self, text: str, *, thinking: bool) -> None:
        if not text or (thinking and not self.thinking):
            return
        console, style = (self.notes, "dim italic") if thinking else (self.out, "")
        if self._open is not None and (self._open is not console or self._open_style != style):
            self._close_line()
        self.idle(None)
        shown = safe(text)
        if self._open is None:
            # Models begin blocks with empty lines; they say nothing.
            shown = shown.lstrip("\n")
            if not shown:
                return
            self._gap(console)
            # In a pipe the text stays as it was written.
            self._wrap = WordWrap(console.width if console.is_terminal else 0)
        self._open, self._open_style = console, style
        self._put(console, self._wrap.feed(shown), style)

    def _put(self, console: Console, text: str, style: str) -> None:
        if text:
            console.print(Text(text, style=style), end="", soft_wrap=True)
            console.file.flush()

    def _gap(self, console: Console) -> None:
        """Sets a block of text off from what was printed before it."""
        if self._something and console.is_terminal:
            console.print()
        self._something = True
        self._after_text = True

    def _close_line(self) -> None:
        if self._open is not None:
            self._put(self._open, self._wrap.flush(), self._open_style)
            self._open.print()
            self._open = None
