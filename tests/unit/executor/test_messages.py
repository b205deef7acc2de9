"""What the SDK reports becomes items, whatever tools and models put into it."""

from __future__ import annotations

import json

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    RateLimitEvent,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from hypothesis import given
from hypothesis import strategies as st

from services.executor.domain.items import (
    AttemptEnded,
    BlockCompleted,
    BlockDelta,
    Notice,
    Outcome,
    ToolResult,
    ToolUse,
)
from services.executor.domain.text import input_hash, storable, storable_json
from services.executor.gateways.messages import MAX_TEXT_BYTES, TurnReader, tool_use

pytestmark = pytest.mark.unit


def stream(event: dict, parent: str | None = None) -> StreamEvent:
    return StreamEvent(uuid="u", session_id="s", event=event, parent_tool_use_id=parent)


def begin(kind: str = "text") -> StreamEvent:
    return stream({"type": "content_block_start", "content_block": {"type": kind}})


def piece(text: str, kind: str = "text", parent: str | None = None) -> StreamEvent:
    return stream({"type": "content_block_delta", "delta": {"type": f"{kind}_delta", kind: text}}, parent)


def said(*blocks: object, parent: str | None = None) -> AssistantMessage:
    return AssistantMessage(content=list(blocks), model="m", parent_tool_use_id=parent)  # type: ignore[arg-type]


def result(**changes: object) -> ResultMessage:
    values: dict = {
        "subtype": "success",
        "duration_ms": 1,
        "duration_api_ms": 1,
        "is_error": False,
        "num_turns": 1,
        "session_id": "s",
        "result": "x",
    }
    return ResultMessage(**{**values, **changes})


def read(reader: TurnReader, *messages: object) -> list:
    return [item for message in messages for item in reader.read(message)]  # type: ignore[arg-type]


START = stream({"type": "message_start"})
STOP = stream({"type": "content_block_stop"})


def test_deltas_and_the_message_that_completes_them_carry_one_number():
    items = read(
        TurnReader(),
        START,
        begin("thinking"), piece("hm", "thinking"), STOP, said(ThinkingBlock("hm", "")),
        begin(), piece("one "), piece("two"), STOP, said(TextBlock("one two")),
    )  # fmt: skip
    assert items == [
        BlockDelta(1, True, 0, "hm"),
        BlockCompleted(1, True, "hm", "m", ""),
        BlockDelta(2, False, 0, "one "),
        BlockDelta(2, False, 4, "two"),
        BlockCompleted(2, False, "one two", "m", ""),
    ]


def test_what_a_broken_answer_left_open_gets_another_number_when_it_comes_again():
    items = read(TurnReader(), START, begin(), piece("Hello wor"), START, begin(), piece("Hello world"), STOP)
    items += read(TurnReader(), said(TextBlock("whole")))
    assert [(item.block, item.text) for item in items] == [(1, "Hello wor"), (2, "Hello world"), (1, "whole")]


def test_what_subagents_say_has_no_deltas_and_names_its_call():
    items = read(TurnReader(), piece("quiet", parent="toolu_1"), said(TextBlock("found"), parent="toolu_1"))
    assert items == [BlockCompleted(1, False, "found", "m", "toolu_1")]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}], "a\n[image]\nb"),
        ("nul \x00, lone \ud83d surrogate", "nul \ufffd, lone \ufffd surrogate"),
        ("x" * (12 << 20), "x" * (12 << 20)),
    ],
    ids=["text", "nothing", "parts", "unstorable", "12 MiB"],
)
def test_results_of_tools_whatever_they_are(content: object, text: str):
    block = ToolResultBlock("toolu_1", content, None)  # type: ignore[arg-type]
    assert read(TurnReader(), UserMessage(content=[block])) == [ToolResult("toolu_1", text, False)]


@given(st.text(st.characters()))
def test_storable_text_is_valid_and_as_long_as_before(text: str):
    clean = storable(text)
    assert len(clean) == len(text)
    assert "\x00" not in clean
    clean.encode()


def test_inputs_of_tools_are_storable_to_their_keys():
    call = tool_use("toolu_1", "Bash", {"a\x00": ["\ud800", {"b": "\x00"}], "n": 1.5}, "")
    assert json.loads(call.input_json) == {"a\ufffd": ["\ufffd", {"b": "\ufffd"}], "n": 1.5}
    call.input_json.encode()
    assert storable_json(12) == 12


def test_the_hash_of_a_call_does_not_depend_on_the_order_of_keys_but_on_all_else():
    assert input_hash("Bash", {"a": 1, "b": 2}) == input_hash("Bash", {"b": 2, "a": 1})
    different = {
        input_hash("Bash", {"a": 1}),
        input_hash("Bash", {"a": "1"}),
        input_hash("Read", {"a": 1}),
        input_hash("Bash", {"a": "\ud800"}),
        input_hash("Bash", {"a": "\ufffd"}),
    }
    assert len(different) == 5, "what was made storable is not what was approved"


def test_a_tool_call_is_reported_as_the_model_wrote_it():
    [call] = read(TurnReader(), said(ToolUseBlock("toolu_1", "Write", {"file_path": "a.txt"})))
    assert (call.tool_name, call.input_json, call.parent_tool_use_id) == (
        "Write",
        '{"file_path": "a.txt"}',
        "",
    )


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({}, Outcome.SUCCEEDED, ""),
        ({"subtype": "error_max_turns", "is_error": True}, Outcome.FAILED, "MAX_TURNS"),
        ({"is_error": True, "api_error_status": 529}, Outcome.FAILED, "MODEL_ERROR"),
        ({"subtype": "error_during_execution", "is_error": True}, Outcome.FAILED, "AGENT_ERROR"),
        ({"subtype": "error_during_execution", "terminal_reason": "aborted_tools"}, Outcome.INTERRUPTED, ""),
    ],
)
def test_ends_have_their_reasons(changes: dict, outcome: Outcome, reason: str):
    [ended] = read(TurnReader(), result(**changes))
    assert (ended.outcome, ended.reason) == (outcome, reason)


def test_structured_output_that_is_missing_fails_the_turn():
    [ended] = read(TurnReader(structured=True), result())
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "STRUCTURED_OUTPUT_MISSING")
    [ended] = read(TurnReader(structured=True), result(structured_output={"a": "\x00"}))
    assert isinstance(ended, AttemptEnded)
    assert (ended.outcome, json.loads(ended.structured_output_json)) == (Outcome.SUCCEEDED, {"a": "\ufffd"})


def test_retries_of_the_model_are_told():
    data = {"error_status": 529, "attempt": 2, "max_retries": 10}
    [notice] = read(TurnReader(), SystemMessage(subtype="api_retry", data=data))
    assert notice == Notice("MODEL_RETRY", "the model API answered 529; try 2 of 10")


def test_what_is_not_known_is_passed_over():
    assert read(TurnReader(), SystemMessage(subtype="something_new", data={}), stream({"type": "ping"})) == []
    assert read(TurnReader(), UserMessage(content="text"), object()) == []
    assert RateLimitEvent, "the SDK has more kinds than we read"


@pytest.mark.parametrize(
    "text", ["x" * (MAX_TEXT_BYTES + 5), "\x00" * MAX_TEXT_BYTES, "\U0001f600" * 4_000_000]
)
def test_a_result_that_no_message_could_carry_is_cut_between_code_points_and_that_is_said(text: str):
    block = ToolResultBlock(tool_use_id="t", content=text, is_error=False)
    notice, told = TurnReader().read(UserMessage(content=[block]))
    assert isinstance(notice, Notice)
    assert notice.code == "TEXT_TRUNCATED"
    assert isinstance(told, ToolResult)
    assert MAX_TEXT_BYTES - 4 < len(told.text.encode()) <= MAX_TEXT_BYTES
    assert storable(text).startswith(told.text)


def test_the_deltas_of_a_block_that_is_cut_tell_what_its_message_tells():
    reader = TurnReader()
    pieces = ["\u00e9" * 1_000_001 for _ in range(8)]
    deltas = [item for event in (begin(), *map(piece, pieces)) for item in reader.read(event)]
    notice, completed = reader.read(said(TextBlock("".join(pieces))))
    assert isinstance(notice, Notice)
    assert isinstance(completed, BlockCompleted)
    assert "".join(item.text for item in deltas if isinstance(item, BlockDelta)) == completed.text
    assert {item.block for item in deltas if isinstance(item, BlockDelta)} == {completed.block}
    assert len(completed.text.encode()) <= MAX_TEXT_BYTES


def test_a_call_whose_input_no_message_could_carry_is_told_without_it():
    call = ToolUseBlock(id="t", name="Write", input={"content": "x" * (MAX_TEXT_BYTES + 1)})
    notice, told = TurnReader().read(said(call))
    assert isinstance(notice, Notice)
    assert notice.code == "TEXT_TRUNCATED"
    assert isinstance(told, ToolUse)
    assert told.input_json == "{}"
    assert told.input_hash == input_hash("Write", call.input)


def test_structured_output_that_no_message_could_carry_fails_the_turn():
    reader = TurnReader(structured=True)
    [ended] = reader.read(result(structured_output={"x": "y" * MAX_TEXT_BYTES}))
    assert isinstance(ended, AttemptEnded)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "STRUCTURED_OUTPUT_TOO_LARGE")
    assert ended.structured_output_json == ""
