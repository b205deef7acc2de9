"""The transcripts of a running session service, as executors call them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from aiagent.session.v1 import transcript_service_pb2 as pb
from aiagent.session.v1.transcript_service_pb2_grpc import TranscriptServiceStub
from deploy.local.servers import Valkey
from services.kernel.grpc import open_channel
from services.kernel.identity import private_key_to_text
from services.kernel.identity.keys import public_key_to_text
from services.kernel.testing import ServiceKeys
from tests.databases import Copy

from .serving import Serving, serving


class Store:
    """What an executor calls; `foreign` is another service's channel."""

    def __init__(
        self, api: Serving, keys: ServiceKeys, channel: grpc.aio.Channel, foreign: grpc.aio.Channel
    ) -> None:
        self.api = api
        self.keys = keys
        self.channel = channel
        self.foreign = foreign
        self.stub: Any = TranscriptServiceStub(channel)

    async def attempt(self, message: str = "stay") -> pb.TranscriptFence:
        """Begins an attempt in a new session and returns what proves it."""
        client = self.api.client()
        created = await client.session()
        await client.send(created.id, message)
        return await self.begun(created.id, 1)

    async def begun(self, session_id: str, number: int) -> pb.TranscriptFence:
        """Waits for the session's n-th attempt."""

        async def found() -> Any:
            runs = [run for run in self.api.executor.runs if run.request.fence.session_id == session_id]
            return runs[number - 1] if len(runs) >= number else None

        request = (await self.api.until(found)).request
        return pb.TranscriptFence(
            session_id=session_id,
            turn_id=request.fence.turn_id,
            attempt=request.fence.attempt,
            token=request.transcript_token,
        )

    async def superseded(self, session_id: str, attempts: int = 2) -> None:
        """Lets the running attempt be lost, so that there is another one."""
        self.api.executor.restart()
        await self.begun(session_id, attempts)

    def append(self, fence: pb.TranscriptFence, *entries: tuple[str, str], **fields: Any) -> Any:
        values = {"cli_session_id": fence.session_id, **fields}
        return self.stub.AppendTranscript(
            pb.AppendTranscriptRequest(
                fence=fence,
                entries=[pb.NewTranscriptEntry(uuid=uuid, json=text) for uuid, text in entries],
                **values,
            )
        )

    def stream(self, fence: pb.TranscriptFence) -> Any:
        return self.stub.ReadTranscript(
            pb.ReadTranscriptRequest(fence=fence, cli_session_id=fence.session_id)
        )

    async def read(self, fence: pb.TranscriptFence) -> list[tuple[int, str, str, str]]:
        """The whole conversation."""
        return [
            (entry.position, entry.subpath, entry.uuid, entry.json)
            async for answer in self.stream(fence)
            for entry in answer.entries
        ]


@asynccontextmanager
async def open_store(databases: Copy, valkey: Valkey, directory: Path) -> AsyncIterator[Store]:
    """Runs a session service that trusts an executor's key."""
    keys = ServiceKeys("session", "executor", "auth")
    trust = {name: public_key_to_text(key) for name, key in keys.trust.items()}
    key = private_key_to_text(keys.private["session"])
    async with serving(databases, valkey, directory, service_key=key, service_trust=trust) as api:
        target = f"127.0.0.1:{api.service.port}"
        async with (
            open_channel(target, signer=keys.signer("executor"), audience="session") as channel,
            open_channel(target, signer=keys.signer("auth"), audience="session") as foreign,
        ):
            yield Store(api, keys, channel, foreign)
