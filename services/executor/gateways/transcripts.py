"""Conversations leave the machine as they are written, and come back before a CLI goes on with one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import structlog

from aiagent.session.v1 import transcript_service_pb2 as pb
from aiagent.session.v1.transcript_service_pb2_grpc import TranscriptServiceStub
from services.executor.domain.transcripts import Entry, Namer, missing_from_store
from services.executor.gateways.transcript_files import TranscriptFiles, is_subpath
from services.executor.usecases.ports import (
    AttemptPass,
    StoredTranscript,
    TranscriptPort,
    TranscriptRefused,
    TranscriptUnavailable,
)
from services.kernel.clock import Clock
from services.kernel.errors import ErrorKind
from services.kernel.grpc.status import error_from_rpc

_log = structlog.get_logger(__name__)
SAVE_SECONDS = 20.0
"""How long an attempt's end waits for its transcript, and a start for the conversation's."""
_CALL_SECONDS = 3.0
_READ_SECONDS = 15.0
_RETRY_SECONDS = 0.5
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_ENTRIES = 500
_LARGEST_BYTES = 16 * 1024 * 1024
_REFUSED = frozenset({ErrorKind.PERMISSION_DENIED, ErrorKind.FAILED_PRECONDITION, ErrorKind.NOT_FOUND})


class TranscriptClient:
    """See `usecases.ports.TranscriptPort`: the session service, over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Args: channel: to the session service."""
        self._stub = TranscriptServiceStub(channel)

    async def append(
        self, attempt: AttemptPass, cli_session_id: str, subpath: str, entries: Sequence[Entry]
    ) -> int:
        """Adds entries; returns the session's last position."""
        position = 0
        for batch in _batches(entries):
            request = pb.AppendTranscriptRequest(
                fence=_fence(attempt),
                cli_session_id=cli_session_id,
                subpath=subpath,
                entries=[pb.NewTranscriptEntry(uuid=entry.id, json=entry.json) for entry in batch],
            )
            try:
                answer = await self._stub.AppendTranscript(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise _failure(error) from error
            position = answer.position
        return position

    async def read(self, attempt: AttemptPass, cli_session_id: str) -> StoredTranscript:
        """Reads a conversation."""
        request = pb.ReadTranscriptRequest(fence=_fence(attempt), cli_session_id=cli_session_id)
        position = 0
        texts: list[tuple[str, str, str]] = []
        try:
            async for answer in self._stub.ReadTranscript(request, timeout=_READ_SECONDS):
                position = answer.position
                texts += [(entry.subpath, entry.uuid, entry.json) for entry in answer.entries]
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        return StoredTranscript(position, tuple(texts))


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        length = len(entry.json.encode())
        if length > _LARGEST_BYTES:
            raise TranscriptUnavailable(f"an entry of {length} bytes is too large")
        if batch and (size + length > _BATCH_BYTES or len(batch) >= _BATCH_ENTRIES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += length
    if batch:
        yield batch


def _fence(attempt: AttemptPass) -> pb.TranscriptFence:
    return pb.TranscriptFence(
        session_id=str(attempt.session_id),
        turn_id=str(attempt.turn_id),
        attempt=attempt.attempt,
        token=attempt.token,
    )


def _failure(error: grpc.aio.AioRpcError) -> Exception:
    failure = error_from_rpc(error)
    kind = TranscriptRefused if failure.kind in _REFUSED else TranscriptUnavailable
    return kind(f"{failure.reason}: {failure.message}")


class TranscriptMirror:
    """One agent's conversation, here and in the store. The SDK hands it every entry, in order (`SessionStore`).

    Attributes:
        position: Where the store stood when it last answered this agent.
        whole: Whether the store has acknowledged everything that was handed over.
    """

    def __init__(self, transcripts: TranscriptPort, home: Path, workspace: Path, clock: Clock) -> None:
        """Args: transcripts: the store; home: the session's; workspace: where its CLI runs; clock: for waiting."""
        self._transcripts = transcripts
        self._home = home
        self._workspace = workspace
        self._clock = clock
        self._attempt: AttemptPass | None = None
        self._cli_session_id = ""
        self._lock = asyncio.Lock()
        self._saved: dict[str, set[str]] = {}
        self._namers: dict[str, Namer] = {}
        self._answered: set[str] = set()
        self.position = 0
        self.whole = True

    def begin(self, attempt: AttemptPass, position: int | None = None) -> None:
        """From now on what is written is this attempt's; a new conversation begins at a position."""
        self._attempt = attempt
        if position is not None:
            self.position = position

    def holds(self, entry_id: str) -> bool:
        """Whether the conversation has a message with this id."""
        return entry_id in self._saved.get("", ())

    def answered(self, tool_use_id: str) -> bool:
        """Whether the conversation that was restored has the result of a call."""
        return tool_use_id in self._answered

    async def restore(self, cli_session_id: str, *, known: bool) -> bool:
        """Brings the conversation here, before a CLI is started for it.

        Args:
            cli_session_id: The conversation.
            known: Whether it has begun before.

        Returns:
            Whether there is something to resume.

        Raises:
            TranscriptUnavailable: The store does not answer.
            TranscriptRefused: Another attempt has begun.
        """
        self._cli_session_id = cli_session_id
        if not known:
            return False
        stored = await self._read(cli_session_id)
        self.position = stored.position
        files = self._files()
        there = await asyncio.to_thread(_sorted, stored)
        here = await asyncio.to_thread(lambda: files.read(trim=True))
        missing = missing_from_store(there, here)
        self._saved = {subpath: {entry.id for entry in entries} for subpath, entries in there.items()}
        if missing is None:
            _log.info("transcript replaced by that of the store", position=stored.position)
            await asyncio.to_thread(files.replace, there)
            here = there
        async with self._lock:
            for subpath, entries in (missing or {}).items():
                await self._send(subpath, entries)
        for subpath, entries in here.items():
            namer = self._namers[subpath] = Namer()
            await asyncio.to_thread(_repeat, namer, entries)
            self._answered.update(call for entry in entries for call in entry.answers())
        return bool(here.get(""))

    async def _read(self, cli_session_id: str) -> StoredTranscript:
        deadline = self._clock.monotonic() + SAVE_SECONDS
        while True:
            try:
                return await self._transcripts.read(self._pass(), cli_session_id)
            except TranscriptUnavailable:
                if self._clock.monotonic() > deadline:
                    raise
            await self._clock.sleep(_RETRY_SECONDS)

    def _pass(self) -> AttemptPass:
        if self._attempt is None:
            raise TranscriptRefused("no attempt has begun")
        return self._attempt

    def _files(self) -> TranscriptFiles:
        return TranscriptFiles(self._home, self._workspace, self._cli_session_id)

    # What the SDK calls

    async def append(self, key: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
        """Takes entries that the CLI has written to its file. Never fails: what could not be saved is found there."""
        subpath = str(key.get("subpath") or "")
        if subpath and not is_subpath(subpath):
            _log.warning("transcript with a strange name is not kept", subpath=subpath[:200])
            return
        async with self._lock:
            namer = self._namers.setdefault(subpath, Namer())
            named = [namer.name(entry) for entry in entries]
            try:
                if self.whole:
                    # Set back before anything can go wrong, a cancellation included.
                    self.whole = False
                    await self._send(subpath, named)
                    self.whole = True
                else:
                    await self._catch_up()
            except (TranscriptUnavailable, TranscriptRefused) as error:
                _log.warning("transcript not saved for now", why=str(error)[:200])

    async def load(self, _key: Mapping[str, Any]) -> None:
        """Nothing: the CLI resumes from the file, which `restore` has put there."""
        return

    # Saving

    async def _send(self, subpath: str, entries: Sequence[Entry]) -> None:
        saved = self._saved.setdefault(subpath, set())
        new = [entry for entry in entries if entry.id not in saved]
        if new:
            self.position = await self._transcripts.append(self._pass(), self._cli_session_id, subpath, new)
            saved.update(entry.id for entry in new)

    async def _catch_up(self) -> None:
        """Sends what the files have and the store has not."""
        here = await asyncio.to_thread(self._files().read)
        missing = missing_from_store({}, here) or {}
        for subpath, entries in missing.items():
            await self._send(subpath, entries)
        self.whole = True

    def doubt(self) -> None:
        """Something was lost on the way here: the files have to be looked at."""
        self.whole = False

    async def settle(self, seconds: float = SAVE_SECONDS) -> bool:
        """Waits until everything is saved, and sends what is missing; False when it is not saved in time."""
        deadline = self._clock.monotonic() + seconds
        while not self.whole:
            try:
                async with self._lock:
                    await self._catch_up()
            except TranscriptUnavailable as error:
                _log.warning("transcript not saved yet", why=str(error)[:200])
                if self._clock.monotonic() + _RETRY_SECONDS > deadline:
                    return False
                await self._clock.sleep(_RETRY_SECONDS)
            except TranscriptRefused as error:
                _log.warning("transcript not saved", why=str(error)[:200])
                return False
        return True


def _sorted(stored: StoredTranscript) -> dict[str, list[Entry]]:
    """The store's entries by transcript. What they are called is the store's word."""
    found: dict[str, list[Entry]] = {}
    for subpath, uuid, text in stored.entries:
        entry = Namer().name(_content(text))
        found.setdefault(subpath, []).append(Entry(uuid, entry.own, entry.kind, text))
    return found


def _content(text: str) -> dict[str, Any]:
    content = json.loads(text)
    return content if isinstance(content, dict) else {}


def _repeat(namer: Namer, entries: Sequence[Entry]) -> None:
    """Lets a namer see what came before."""
    for entry in entries:
        if not entry.own:
            namer.name(_content(entry.json))
