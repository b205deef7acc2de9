"""Turns of the real CLI over real gRPC: streamed, taken up again, decided, stopped, killed."""

from __future__ import annotations

import asyncio
import time

import grpc
import psutil
import pytest

from aiagent.executor.v1 import executor_service_pb2 as pb
from aiagent.executor.v1 import executor_service_pb2_grpc
from services.kernel.grpc import open_channel

from .conftest import Driver, RunningExecutor, agent_processes, reason, until

pytestmark = pytest.mark.integration

WRITE = {"tools": [{"name": "Write", "input": {"file_path": "note.txt", "content": "written"}}]}
SPEECH = {"text": " ".join(f"word{number}" for number in range(60)), "tokens_per_second": 60}


def use(command: str) -> dict:
    return {"tools": [{"name": "Bash", "input": {"command": command}}]}


async def test_a_turn_streams_what_the_agent_does(running: RunningExecutor, driver: Driver):
    turn = await driver.run(driver.turn({"thinking": "hm", "text": "I write."} | WRITE, {"text": "Done."}))
    # What a call has cost is told as soon as it is known, beside the rest; what the last one has, often with the end.
    kinds = [kind for item in turn.items if (kind := item.WhichOneof("kind")) not in ("block_delta", "spent")]
    assert kinds == [
        "agent_started", "block_completed", "block_completed", "tool_use", "decision_needed", "tool_result",
        "block_completed", "attempt_ended",
    ] or kinds[3:5] == ["decision_needed", "tool_use"]  # fmt: skip
    offsets = [item.offset for item in turn.items]
    assert offsets == sorted(set(offsets))
    assert turn.outcome == "SUCCEEDED"
    told = [item.spent for item in turn.items if item.HasField("spent")]
    told += [turn.end] if len(told) == 1 else []
    assert [(one.model_calls, one.usage.output_tokens > 0, one.cost_usd > 0) for one in told] == [
        (1, True, True)
    ] * 2
    assert (running.workspaces / turn.fence.session_id / "note.txt").read_text() == "written"


async def test_an_attempt_goes_on_without_its_reader_and_is_taken_up_without_a_gap(driver: Driver):
    turn = driver.turn(SPEECH | use("true"), SPEECH)
    await driver.run(turn, until_item="block_delta")
    for _ in range(5):
        await driver.stub.HeartbeatTurn(pb.HeartbeatTurnRequest(fence=turn.fence))
        seen = len(turn.items)
        cut = asyncio.create_task(driver.attach(turn))
        await until(lambda known=seen: len(turn.items) > known)  # type: ignore[misc]
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
    await driver.attach(turn)
    assert turn.outcome == "SUCCEEDED"
    offsets = [item.offset for item in turn.items]
    assert offsets == sorted(set(offsets))
    assert turn.text == SPEECH["text"] * 2
    completed = [item.block_completed.text for item in turn.items if item.HasField("block_completed")]
    assert completed == [SPEECH["text"]] * 2


async def test_acknowledged_items_are_forgotten_and_the_attempt_with_the_last(driver: Driver):
    turn = await driver.run(driver.turn({"text": "Hello."}))
    await driver.stub.AckTurn(pb.AckTurnRequest(fence=turn.fence, offset=1))
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await driver.attach(_again(turn))
    assert reason(gone.value) == "OFFSET_GONE"
    await driver.stub.AckTurn(pb.AckTurnRequest(fence=turn.fence, offset=turn.items[-1].offset))
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await driver.attach(_again(turn))
    assert reason(unknown.value) == "ATTEMPT_UNKNOWN"
    with pytest.raises(grpc.aio.AioRpcError) as barred:
        await driver.run(_again(turn))
    assert reason(barred.value) == "ATTEMPT_BARRED"


def _again(turn):
    return type(turn)(turn.fence, turn.request)


async def test_a_denied_call_does_not_run_and_the_model_learns_why(running: RunningExecutor, driver: Driver):
    turn = await driver.run(driver.turn(WRITE, {"text": "I see."}), answer=(False, "not on a Friday"))
    [result] = [item.tool_result for item in turn.items if item.HasField("tool_result")]
    assert result.is_error
    assert "not on a Friday" in result.content.text
    assert not (running.workspaces / turn.fence.session_id / "note.txt").exists()
    assert turn.outcome == "SUCCEEDED"


async def test_the_conversation_is_known_to_the_next_turn_and_to_the_next_process(driver: Driver):
    first = await driver.run(driver.turn({"text": "The word is heliotrope."}))
    conversation = {"session_id": first.fence.session_id, "cli_session_id": first.end.cli_session_id}
    second = await driver.run(driver.turn({"recall": "heliotrope"}, **conversation))
    assert second.items[0].agent_started.reused
    assert second.text == "I remember: heliotrope"
    for pid in agent_processes():
        psutil.Process(pid).kill()
    while (await driver.stub.GetExecutor(pb.GetExecutorRequest())).live_clients:
        await asyncio.sleep(0.05)
    third = await driver.run(driver.turn({"recall": "heliotrope"}, **conversation))
    assert not third.items[0].agent_started.reused
    assert third.text == "I remember: heliotrope"


@pytest.mark.parametrize(
    "steps",
    [[{"hang": True}], [SPEECH | {"tokens_per_second": 1}], [use("sleep 300 & sleep 300"), {"text": "x"}]],
    ids=["waiting for the model", "speaking", "in a tool"],
)
async def test_an_interrupt_stops_within_two_seconds_and_leaves_nothing(driver: Driver, steps: list):
    turn = driver.turn(*steps)
    running = asyncio.create_task(driver.run(turn))
    ready = "tool_use" if "tools" in steps[0] else "agent_started"
    await until(lambda: any(item.WhichOneof("kind") == ready for item in turn.items))
    if ready == "tool_use":
        await until(lambda: any("sleep" in name for name in _names()))
    begun = time.monotonic()
    await driver.stub.InterruptTurn(pb.InterruptTurnRequest(fence=turn.fence))
    await running
    assert time.monotonic() - begun < 2.0
    assert turn.outcome == "INTERRUPTED"
    await until(lambda: not any("sleep" in name for name in _names()))


def _names() -> list[str]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            found.append(child.name())
        except psutil.Error:
            continue
    return found


@pytest.mark.chaos
async def test_a_killed_agent_ends_its_attempt_with_the_reason(driver: Driver):
    turn = driver.turn({"hang": True})
    running = asyncio.create_task(driver.run(turn))
    await until(lambda: len(turn.items) > 0)
    before = agent_processes()
    begun = time.monotonic()
    for pid in before:
        psutil.Process(pid).kill()
    await running
    assert time.monotonic() - begun < 5.0
    assert (turn.outcome, turn.end.failure.reason) == ("LOST", "CLI_DIED")
    await until(lambda: not agent_processes() & before)


async def test_parking_ends_the_process_and_the_person_s_answer_reaches_the_next_one(
    running: RunningExecutor, driver: Driver
):
    turn = await driver.run(driver.turn(WRITE, {"text": "Done."}), until_item="decision_needed", answer=None)
    await driver.stub.InterruptTurn(pb.InterruptTurnRequest(fence=turn.fence, park=True))
    await driver.attach(turn)
    assert turn.outcome == "PARKED"
    assert not (running.workspaces / turn.fence.session_id / "note.txt").exists()
    [call] = [item.decision_needed.tool_use for item in turn.items if item.HasField("decision_needed")]
    again = _again(turn)
    again.fence.attempt = again.request.fence.attempt = 2
    again.request.cli_session_id = turn.items[0].agent_started.cli_session_id
    again.request.earlier_decisions.add(
        tool_name=call.tool_name, input_json=call.input_content.text, allowed=True, reason=""
    )
    await driver.run(again)
    assert again.outcome == "SUCCEEDED"
    assert not again.items[0].agent_started.reused


async def test_a_full_executor_says_so(running: RunningExecutor, driver: Driver):
    turns = [driver.turn({"hang": True}) for _ in range(running.settings.executor_max_live_clients)]
    tasks = [asyncio.create_task(driver.run(turn)) for turn in turns]
    await until(lambda: all(turn.items for turn in turns))
    with pytest.raises(grpc.aio.AioRpcError) as full:
        await driver.run(driver.turn({"text": "x"}))
    assert (full.value.code(), reason(full.value)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "EXECUTOR_FULL",
    )
    for turn in turns:
        await driver.stub.InterruptTurn(pb.InterruptTurnRequest(fence=turn.fence))
    await asyncio.gather(*tasks)


async def test_only_the_session_service_may_call(running: RunningExecutor):
    for signer in (None, running.keys.signer("auth")):
        channel = open_channel(running.settings.executor_listen, signer=signer, audience="executor")
        stub = executor_service_pb2_grpc.ExecutorServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GetExecutor(pb.GetExecutorRequest())
        assert error.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        await channel.close()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("workspace", {"workspace": "../../etc"}),
        ("workspace", {"workspace": ""}),
        ("prompt", {"prompt": ""}),
        ("fence.attempt", {"attempt": 0}),
        ("fence.session_id", {"session": "../x"}),
    ],
)
async def test_a_bad_request_names_its_field_and_starts_nothing(driver: Driver, field: str, change: dict):
    turn = driver.turn({"text": "x"})
    request = turn.request
    for name, value in change.items():
        if name == "attempt":
            request.fence.attempt = value
        elif name == "session":
            request.fence.session_id = value
        else:
            setattr(request, name, value)
    before = agent_processes()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await driver.run(turn)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (error.value.details() or "")
    assert agent_processes() <= before


async def test_a_call_for_an_earlier_process_is_refused(driver: Driver):
    turn = driver.turn({"text": "x"})
    turn.request.fence.incarnation = turn.fence.session_id
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await driver.run(turn)
    assert reason(error.value) == "INCARNATION_MISMATCH"


async def test_forgetting_a_session_leaves_no_process_and_no_transcript(
    running: RunningExecutor, driver: Driver
):
    turn = await driver.run(driver.turn({"text": "x"}))
    private = running.settings.state_dir / "executors" / "executor-1" / "agents" / turn.fence.session_id
    assert private.exists()
    await driver.stub.ForgetSession(
        pb.ForgetSessionRequest(session_id=turn.fence.session_id, lease_epoch=turn.fence.lease_epoch)
    )
    assert not private.exists()
    described = await driver.stub.GetExecutor(pb.GetExecutorRequest())
    assert turn.fence.session_id not in described.idle_session_ids


async def test_a_text_that_no_message_could_carry_is_cut_and_the_turn_goes_on(driver: Driver):
    # 17 MB in UTF-8, where a message has 16 MiB.
    turn = driver.turn({"text": "\u20ac", "times": 5_700_000} | use("echo on"), {"text": "Done."})
    running = asyncio.create_task(driver.run(turn))
    while not running.done():
        await asyncio.wait({running}, timeout=2)
        await driver.stub.HeartbeatTurn(pb.HeartbeatTurnRequest(fence=turn.fence))
    await running
    assert turn.outcome == "SUCCEEDED", turn.end
    completed = [item.block_completed.text for item in turn.items if item.HasField("block_completed")]
    assert len(completed[0]) == 12 * 1024 * 1024 // 3
    assert completed[-1] == "Done."
    assert turn.text == "".join(completed)
    assert "TEXT_TRUNCATED" in [item.notice.code for item in turn.items if item.HasField("notice")]
