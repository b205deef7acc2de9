"""Users, who know nothing but the public port: they send, answer, interrupt, upload, and watch."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from google.api import httpbody_pb2

from aiagent.events.v1 import session_event_pb2
from aiagent.session.v1 import (
    agent_options_pb2,
    permission_service_pb2,
    session_service_pb2,
    workspace_service_pb2,
)
from tests.e2e.conftest import User
from tests.e2e.script import prompt, recall, say, use

from .calling import NotAnswered, Statuses, patiently
from .plan import Act
from .records import Answered, Records, Sent, Uploaded
from .tools import MARKS
from .watching import Watcher

MAX_OPEN_TURNS = 2
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "naïve", "élan", "🦊", "and", "a", "lazy", "dog")


def speech(count: int, mark: str) -> str:
    """Some words; code points and bytes differ in number."""
    return " ".join([mark, *(WORDS[index % len(WORDS)] for index in range(count))])


def message(data: dict[str, Any], recalled: str = "") -> str:
    """The script of a planned message: its tools leave a mark, then wait a little; at last it may recall another."""
    steps = []
    for step in data["steps"]:
        # Of the shell alone: a `date` would be a process of its own, and killed leaves a mark without a time.
        command = f'echo "{step["token"]} $EPOCHREALTIME" >> {MARKS}'
        if step["sleep"]:
            command += f"; sleep {step['sleep']}"
        text = speech(step["words"], step["token"]) if step["words"] else ""
        steps.append(use("Bash", text, command=command))
    steps.append(
        recall(re.escape(recalled))
        if recalled
        else say(speech(data["words"], data["mark"]), tokens_per_second=data["pace"])
    )
    return prompt(*steps, text=f"[{data['mark']}]")


def archive(name: str, text: str) -> bytes:
    """A tar archive of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        entry = tarfile.TarInfo(name)
        entry.size = len(text.encode())
        packed.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@dataclass
class Conversation:
    """One session and those who watch it; `answered` holds the marks of messages whose turns succeeded."""

    session_id: str
    principal: Watcher
    slots: dict[int, Watcher] = field(default_factory=dict)
    open_turns: set[str] = field(default_factory=set)
    marks: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)


class Person:
    """One user, who does their acts one after the other and answers questions as they come."""

    def __init__(
        self, number: int, user: User, records: Records, statuses: Statuses, acts: list[Act]
    ) -> None:
        """Args: number: in the plan; user: signed up; records, statuses: where to note; acts: what to do."""
        self.number = number
        self.user = user
        self._records = records
        self._statuses = statuses
        self._acts = acts
        self._now: Conversation | None = None
        self.watchers: list[Watcher] = []
        self._answers: dict[str, tuple[bool, float]] = {
            step["token"]: (step["allow"], step["after"])
            for act in acts
            if act.kind == "message"
            for step in act.data["steps"]
        }
        self._group: asyncio.TaskGroup | None = None
        self.skipped = 0

    @property
    def session_ids(self) -> list[str]:
        """The sessions they have begun."""
        return list(dict.fromkeys(watcher.record.session_id for watcher in self.watchers))

    async def live(self, begun: float, done: asyncio.Event) -> None:
        """Does all acts, each at its time; then goes on answering until told to stop.

        Args:
            begun: When the run began, by the loop's clock.
            done: Set when nothing more is to be answered.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            for act in self._acts:
                await asyncio.sleep(max(0.0, begun + act.at - loop.time()))
                try:
                    await self._do(act)
                except NotAnswered as error:
                    self._records.troubles.append(f"user {self.number}: {error} was not answered in a minute")
                except grpc.aio.AioRpcError:
                    self.skipped += 1  # a refusal; it has been counted with its reason
            await done.wait()
        for watcher in self.watchers:
            await watcher.go()

    async def _do(self, act: Act) -> None:
        if act.kind == "fresh":
            await self._begin(asks=act.data["asks"])
        elif self._now is None:
            self.skipped += 1
        else:
            await {
                "message": self._send,
                "interrupt": self._interrupt,
                "watch": self._watch,
                "upload": self._upload,
            }[act.kind](self._now, act.data)

    async def _begin(self, *, asks: bool) -> None:
        request = session_service_pb2.CreateSessionRequest(name="chaos", request_id=uuid4().hex)
        options = agent_options_pb2.AgentOptions
        request.sdk_options.permission_mode = options.DEFAULT if asks else options.BYPASS_PERMISSIONS
        created = await patiently(
            self.user, self._statuses, "CreateSession", self.user.sessions.CreateSession, request
        )
        # Guests leave with the old session; who answers its questions stays.
        for guest in self._now.slots.values() if self._now else ():
            await guest.go()
        watcher = self._watcher(created.id, "principal", deltas=True)
        self._now = Conversation(created.id, watcher)
        watcher.come()
        text = f"begun by user {self.number}"
        await self._upload(self._now, {"name": "begun.txt", "text": text})

    def _watcher(self, session_id: str, name: str, *, deltas: bool) -> Watcher:
        name = f"user {self.number} {name} {len(self.watchers)}"
        on_event = self._hear(session_id) if "principal" in name else None
        watcher = Watcher(self.user, self._statuses, name, session_id, deltas=deltas, on_event=on_event)
        self.watchers.append(watcher)
        self._records.watchers.append(watcher.record)
        return watcher

    def _hear(self, session_id: str) -> Any:
        calls: dict[str, str] = {}

        def hear(event: session_event_pb2.SessionEvent) -> None:
            now = self._now
            payload = event.payload
            match payload.WhichOneof("kind"):
                case "user_message" if now is not None and now.session_id == session_id:
                    now.open_turns.add(event.turn_id)
                case "turn_ended" if now is not None and now.session_id == session_id:
                    now.open_turns.discard(event.turn_id)
                    if payload.turn_ended.state == "SUCCEEDED" and event.turn_id in now.marks:
                        now.answered.append(now.marks[event.turn_id])
                case "tool_use":
                    calls[payload.tool_use.tool_use_id] = str(payload.tool_use.input)
                case "permission_requested":
                    asked = payload.permission_requested
                    text = calls.get(asked.tool_use_id, "")
                    answer = next(
                        (it for token, it in self._answers.items() if f"{token} " in text), (True, 0.2)
                    )
                    assert self._group is not None
                    self._group.create_task(self._answer(session_id, asked.permission_request_id, *answer))

        return hear

    async def _send(self, now: Conversation, data: dict[str, Any]) -> None:
        if len(now.open_turns) >= MAX_OPEN_TURNS:
            self.skipped += 1
            return
        recalled = now.answered[0] if data["recalls"] and now.answered else ""
        request = session_service_pb2.SendMessageRequest(
            session_id=now.session_id,
            message=message(data, recalled),
            when_busy=session_service_pb2.WhenBusy.Policy.Value(data["when_busy"]),
            request_id=uuid4().hex,
        )
        sent = Sent(now.session_id, f"[{data['mark']}]", recalled=recalled)
        self._records.sent.append(sent)
        turn = await patiently(
            self.user, self._statuses, "SendMessage", self.user.sessions.SendMessage, request
        )
        sent.turn_id = turn.id
        now.marks[turn.id] = sent.mark

    async def _interrupt(self, now: Conversation, _: dict[str, Any]) -> None:
        request = session_service_pb2.InterruptTurnRequest(
            session_id=now.session_id, reason="changed my mind", request_id=uuid4().hex
        )
        await patiently(self.user, self._statuses, "InterruptTurn", self.user.sessions.InterruptTurn, request)

    async def _watch(self, now: Conversation, data: dict[str, Any]) -> None:
        watcher = now.slots.get(data["slot"])
        if watcher is not None and watcher.here:
            await watcher.go()
        elif watcher is None or data["anew"]:
            now.slots[data["slot"]] = self._watcher(now.session_id, "guest", deltas=data["deltas"])
            now.slots[data["slot"]].come()
        else:
            watcher.come()

    async def _upload(self, now: Conversation, data: dict[str, Any]) -> None:
        piece = workspace_service_pb2.UploadWorkspaceRequest(
            session_id=now.session_id,
            request_id=uuid4().hex,
            archive=httpbody_pb2.HttpBody(
                content_type="application/x-tar", data=archive(data["name"], data["text"])
            ),
        )
        stub = self.user.workspaces.UploadWorkspace

        async def upload(request: Any, **options: Any) -> Any:
            return await stub(iter([request]), **options)

        await patiently(self.user, self._statuses, "UploadWorkspace", upload, piece)
        self._records.uploaded.append(Uploaded(now.session_id, data["name"], data["text"]))

    async def _answer(self, session_id: str, asked: str, allow: bool, after: float) -> None:
        await asyncio.sleep(after)
        decisions = permission_service_pb2.ResolvePermissionRequest
        request = decisions(
            session_id=session_id,
            permission_request_id=asked,
            decision=decisions.ALLOW_ONCE if allow else decisions.DENY,
            reason="" if allow else "not now",
            request_id=uuid4().hex,
        )
        stub = self.user.permissions.ResolvePermission
        try:
            await patiently(self.user, self._statuses, "ResolvePermission", stub, request)
        except grpc.aio.AioRpcError:
            return  # it fell away with its turn
        except NotAnswered as error:
            self._records.troubles.append(f"user {self.number}: {error} was not answered in a minute")
            return
        self._records.answered.append(Answered(session_id, asked, allow))
