"""What a person sees of a stream, and what a hostile agent cannot make them see."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aiagent.events.v1 import content_pb2, session_event_pb2
from aiagent.scheduler.v1 import run_pb2
from aiagent_client import SessionEvent, TextDelta
from aiagent_client.cli.output import print_json
from aiagent_client.cli.rendering import Renderer
from aiagent_client.cli.text import in_workspace, main_argument, one_line, safe, size, summary_of
from aiagent_client.cli.wrapping import WordWrap

pytestmark = pytest.mark.unit

STYLES = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """A renderer and what it printed."""

    def __init__(self, *, terminal: bool = False, width: int = 60) -> None:
        self.file = io.StringIO()
        console = Console(
            file=self.file, force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False,
            color_system="truecolor" if terminal else None, legacy_windows=False,
        )  # fmt: skip
        self.renderer = Renderer(console, console, history=True)
        self.sequence = 0

    def event(self, **payload) -> None:
        self.sequence += 1
        self.renderer.show(
            SessionEvent(
                sequence=self.sequence, turn_id="t", payload=session_event_pb2.SessionEventPayload(**payload)
            )
        )

    def delta(self, text: str, offset: int = 0, block: int = 1, *, thinking: bool = False) -> None:
        self.renderer.show(
            TextDelta(turn_id="t", attempt=1, block=block, text_offset=offset, text=text, thinking=thinking)
        )

    def tool(self, identity: str, name: str, **values) -> None:
        use = content_pb2.ToolUse(tool_use_id=identity, tool_name=name)
        use.input.update(values)
        self.event(tool_use=use)

    def result(self, identity: str, text: str, *, is_error: bool = False) -> None:
        self.event(tool_result={"tool_use_id": identity, "content": {"text": text}, "is_error": is_error})

    @property
    def text(self) -> str:
        return self.file.getvalue()


def said(text: str, block: int = 1, **fields) -> dict:
    return {"attempt": 1, "block": block, "type": "TEXT", "content": {"text": text}, **fields}


def test_text_is_printed_once_whether_it_came_in_pieces_or_whole() -> None:
    screen = Screen()
    screen.delta("Hello ")
    screen.delta("wor", 6)
    screen.event(assistant_message=said("Hello world"))
    screen.event(assistant_message=said("Whole.", 2))
    screen.renderer.finish()
    assert screen.text == "Hello world\nWhole.\n"


def test_a_text_that_its_event_holds_only_the_beginning_of_is_called_cut_only_where_it_is() -> None:
    reference = {"content_id": "c", "size_bytes": 3 * 1024**2}
    for pieces, cut in (((), True), (("the whole", " of it"), False)):
        screen = Screen()
        for number, piece in enumerate(pieces):
            screen.delta(piece, offset=sum(map(len, pieces[:number])))
        message = said("the")
        message["content"] = {"text": "the", "reference": reference}
        screen.event(assistant_message=message)
        assert ("[cut; 3.0 MiB in all]" in screen.text) is cut


def test_calls_results_denials_and_the_end() -> None:
    screen = Screen()
    screen.tool("1", "Bash", command="ls\n-la", description="d")
    screen.result("1", "a\nb\n\nc")
    screen.tool("2", "Read", file_path="x")
    screen.tool("3", "Grep", pattern="y")
    screen.result("2", "found")
    screen.result("3", "bad", is_error=True)
    screen.tool("4", "Write", file_path="z")
    screen.event(
        tool_decision={
            "tool_use_id": "4",
            "decision": "DENY",
            "source": "DISALLOWED_TOOLS",
            "reason": "Write",
        }
    )
    screen.result("4", "denied", is_error=True)
    screen.event(
        turn_ended={
            "state": "FAILED", "failure": {"reason": "CLI_DIED", "message": "the agent's process ended"},
            "usage": {"input_tokens": 1000, "output_tokens": 5, "cache_read_tokens": 200},
            "cost_usd": 0.5, "duration_ms": 61_000,
        }
    )  # fmt: skip
    assert screen.text.splitlines() == [
        "● Bash  ls -la",
        "  ⎿ a  (+2 lines)",
        "● Read  x",
        "● Grep  y",
        "  ● Read x",
        "  ⎿ found",
        "  ● Grep y",
        "  ✗ bad",
        "● Write  z",
        "  ✗ denied (disallowed tools): Write",
        (
            "✗ failed: the agent's process ended  1 min 1 s · 1,200 tokens in (200 from cache), 5 out · $0.5000"
            " · 4 tool calls"
        ),
    ]


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\rhidden\x08\x7f\u202egpj.exe\u2066 [red]no markup[/red] :smile: \ud800"


def test_nothing_an_agent_writes_moves_the_terminal() -> None:
    screen = Screen(terminal=True)
    storable = EVIL.replace("\ud800", "")
    screen.event(user_message={"content": {"text": storable}})
    screen.delta(storable, thinking=True)
    screen.delta(storable, block=2)
    screen.tool("1", storable, command=storable)
    screen.result("1", storable)
    screen.event(notice={"message": storable})
    screen.event(permission_resolved={"state": "EXPIRED"})
    screen.event(
        tool_decision={"tool_use_id": "9", "decision": "DENY", "source": "PERSON", "reason": storable}
    )
    screen.event(turn_ended={"state": storable, "failure": {"message": storable}})
    screen.renderer.finish()
    shown = STYLES.sub("", screen.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert "[red]no markup[/red] :smile:" in shown
    assert "␛]0;owned␇" in shown


@given(st.text())
def test_safe_text_has_no_control_characters_left(text: str) -> None:
    shown = safe(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", shown)
    assert len(one_line(text, 20)) <= 20
    assert "\n" not in one_line(text)


@given(st.lists(st.text(alphabet=st.sampled_from("ab \n漢🐘")), max_size=30), st.integers(4, 20))
def test_wrapping_changes_nothing_but_white_space(pieces: list[str], width: int) -> None:
    wrap = WordWrap(width)
    wrapped = "".join(wrap.feed(piece) for piece in pieces) + wrap.flush()
    assert wrapped.split() == "".join(pieces).split() or len("".join(pieces).split()) <= len(wrapped.split())
    assert "".join(wrapped.split()) == "".join("".join(pieces).split())


def test_words_are_not_broken_at_the_edge() -> None:
    wrap = WordWrap(12)
    text = "".join(
        wrap.feed(piece) for piece in ("The qui", "ck brown fo", "x jumps", "\n  over it ", "and on")
    )
    assert text + wrap.flush() == "The quick\nbrown fox\njumps\n  over it\nand on"


def test_main_arguments_and_sizes() -> None:
    use = content_pb2.ToolUse(tool_name="mcp__x__y")
    use.input.update({"count": 3, "name": "n"})
    assert main_argument(use) == "n"
    use.input.Clear()
    use.input.update({"count": 3})
    assert main_argument(use) == '{"count": 3}'
    assert main_argument(content_pb2.ToolUse(tool_name="x")) == ""
    big = content_pb2.Content(text="first\nsecond")
    big.reference.size_bytes = 12 * 1024 * 1024
    assert summary_of(big, 80) == "first  (12.0 MiB in all)"
    assert summary_of(content_pb2.Content(), 80) == "(no output)"
    assert size(0) == "0 B"
    assert in_workspace("cat /srv/workspaces/s-1/a/b.txt x", "s-1") == "cat a/b.txt x"


def test_json_has_the_numbers_of_the_json_interface(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_pb2.TaskRun(cost_usd=0.5)
    run.variables.update({"limit": 20, "ratio": 0.25})
    print_json(run, line=True)
    shown = capsys.readouterr().out
    # A map has no order.
    assert '"limit": 20' in shown
    assert "20.0" not in shown
    assert '"ratio": 0.25' in shown
    assert '"cost_usd": 0.5' in shown
