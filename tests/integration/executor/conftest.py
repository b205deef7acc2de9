"""An executor as in production: real gRPC, the real CLI, the offline model; and a driver that calls it."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from aiagent.executor.v1 import executor_service_pb2 as pb
from aiagent.executor.v1 import executor_service_pb2_grpc
from aiagent.session.v1 import transcript_service_pb2
from aiagent.session.v1.transcript_service_pb2_grpc import add_TranscriptServiceServicer_to_server
from deploy.local.ports import free_port
from services.executor.bootstrap import ExecutorService, build
from services.executor.settings import ExecutorSettings
from services.kernel.grpc import open_channel
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.identity.keys import private_key_to_text, public_key_to_text
from services.kernel.testing import ServiceKeys, running_server
from tests.unit.executor.memory_transcripts import MemoryTranscripts, ServedTranscripts

_TRANSCRIPTS = {
    f"/aiagent.session.v1.TranscriptService/{method.name}": PUBLIC
    for method in transcript_service_pb2.DESCRIPTOR.services_by_name["TranscriptService"].methods
}


def agent_processes() -> set[int]:
    """The processes below this one: agents and what they have started."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if any(mark in " ".join(child.cmdline()) for mark in ("bwrap", "claude", "unshare")):
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Waits for something that has no event, like the end of another process."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@dataclass
class Turn:
    """One attempt, as its driver sees it."""

    fence: pb.Fence
    request: pb.RunTurnRequest
    items: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(item.block_delta.text for item in self.items if item.HasField("block_delta"))

    @property
    def end(self) -> Any:
        assert self.items, "no items"
        assert self.items[-1].HasField("attempt_ended"), self.items[-1]
        return self.items[-1].attempt_ended

    @property
    def outcome(self) -> str:
        return self.end.Outcome.Name(self.end.outcome)


class Driver:
    """Calls an executor as the session service does."""

    def __init__(
        self,
        stub: executor_service_pb2_grpc.ExecutorServiceStub,
        incarnation: str,
        transcripts: MemoryTranscripts,
    ) -> None:
        self.stub = stub
        self.transcripts = transcripts
        self.incarnation = incarnation

    def turn(
        self, *steps: dict[str, Any], session_id: str = "", cli_session_id: str = "", **options: Any
    ) -> Turn:
        fence = pb.Fence(
            session_id=session_id or str(uuid4()),
            turn_id=str(uuid4()),
            attempt=1,
            lease_epoch=1,
            incarnation=self.incarnation,
        )
        request = pb.RunTurnRequest(
            fence=fence,
            prompt=f"Please. <<SCRIPT>>{json.dumps(steps)}<<END>>",
            prompt_id=str(uuid4()),
            cli_session_id=cli_session_id,
            workspace=fence.session_id,
            organization_id=str(uuid4()),
            transcript_position=self.transcripts.position(UUID(fence.session_id)),
            transcript_token="a token",
        )
        request.options.SetInParent()
        request.timeout.FromSeconds(options.pop("timeout_seconds", 60))
        return Turn(fence, request)

    async def run(
        self, turn: Turn, *, until_item: str = "", answer: tuple[bool, str] | None = (True, "")
    ) -> Turn:
        """Runs a turn to its end, or to the first item of a kind; tool calls are answered, unless `answer` is None."""
        return await self._follow(self.stub.RunTurn(turn.request), turn, until_item, answer)

    async def attach(self, turn: Turn, *, answer: tuple[bool, str] | None = (True, "")) -> Turn:
        """Goes on where the items end."""
        after = turn.items[-1].offset if turn.items else 0
        call = self.stub.AttachTurn(pb.AttachTurnRequest(fence=turn.fence, after_offset=after))
        return await self._follow(call, turn, "", answer)

    async def _follow(self, call: Any, turn: Turn, until_item: str, answer: tuple[bool, str] | None) -> Turn:
        async for response in call:
            for item in response.items:
                turn.items.append(item)
                kind = item.WhichOneof("kind")
                if kind == "decision_needed" and answer is not None:
                    await self.decide(turn, item.decision_needed.tool_use_id, *answer)
                if kind == until_item:
                    call.cancel()
                    return turn
        return turn

    async def decide(self, turn: Turn, tool_use_id: str, allow: bool, reason: str = "") -> None:
        await self.stub.DecideTool(
            pb.DecideToolRequest(fence=turn.fence, tool_use_id=tool_use_id, allow=allow, reason=reason)
        )


@dataclass
class RunningExecutor:
    """The executor and what is needed to call it."""

    service: ExecutorService
    settings: ExecutorSettings
    driver: Driver
    keys: ServiceKeys

    @property
    def workspaces(self) -> Path:
        return self.settings.workspace_root


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory with the state and the workspaces."""
    path = Path(tempfile.mkdtemp(prefix="aiagent-executor-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
async def running(directory: Path) -> AsyncIterator[RunningExecutor]:
    """An executor on a free port, and where it keeps conversations."""
    transcripts = MemoryTranscripts()
    async with running_server(
        register=[partial(add_TranscriptServiceServicer_to_server, ServedTranscripts(transcripts))],
        policies=_TRANSCRIPTS,
        domain="session.aiagent",
    ) as (store, _):
        async for made in _executor(directory, transcripts, store):
            yield made


async def _executor(
    directory: Path, transcripts: MemoryTranscripts, store: Any
) -> AsyncIterator[RunningExecutor]:
    keys = ServiceKeys("session", "auth", "executor")
    settings = ExecutorSettings(
        _env_file=None,
        executor_listen=f"127.0.0.1:{free_port()}",
        state_dir=directory / "state",
        workspace_root=directory / "workspaces",
        executor_max_live_clients=3,
        session_targets=f"127.0.0.1:{store.port}",
        service_key=private_key_to_text(keys.private["executor"]),
        service_trust={name: public_key_to_text(key) for name, key in keys.trust.items()},
        ANTHROPIC_API_KEY="",
    )
    service = await build(settings)
    await service.start()
    channel = open_channel(settings.executor_listen, signer=keys.signer("session"), audience="executor")
    stub = executor_service_pb2_grpc.ExecutorServiceStub(channel)
    described = await stub.GetExecutor(pb.GetExecutorRequest(), wait_for_ready=True)
    yield RunningExecutor(service, settings, Driver(stub, described.incarnation, transcripts), keys)
    await channel.close()
    await service.stop()


@pytest.fixture
def driver(running: RunningExecutor) -> Driver:
    """A driver of the running executor."""
    return running.driver


def reason(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error of ours."""
    return details(error).reason


def details(error: grpc.aio.AioRpcError) -> Any:
    """The ErrorInfo of an error of ours."""
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info
