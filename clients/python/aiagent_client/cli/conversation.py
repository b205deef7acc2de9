"""Following a turn in the terminal: its stream, its questions, and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from aiagent.events.v1.session_event_pb2 import SessionEvent
from aiagent.session.v1.session_pb2 import PermissionRequest, Turn
from aiagent.session.v1.session_service_pb2 import TextDelta, WatchCursor
from aiagent_client.cli.context import Invocation
from aiagent_client.cli.failures import FailedError
from aiagent_client.cli.output import print_json, to_json
from aiagent_client.cli.questions import Keyboard, ask
from aiagent_client.cli.rendering import Renderer
from aiagent_client.cli.text import count_of, main_argument, one_line
from aiagent_client.client import Client
from aiagent_client.errors import ApiError, FailedPreconditionError

_ITEM_KIND: Final = {SessionEvent: "event", TextDelta: "delta"}


class Conversation:
    """One session's stream on the terminal.

    With a `turn_id` only that turn is shown, and the conversation ends with it. Questions are asked when `asking`;
    else they are printed with the command that answers them, and end the conversation unless `patient`. Those of turns
    before it, which it waits for, are printed, too, unless they are among `told`.
    """

    def __init__(
        self,
        invocation: Invocation,
        client: Client,
        session_id: str,
        renderer: Renderer,
        *,
        turn_id: str = "",
        asking: bool,
        patient: bool,
        stream_json: bool = False,
        deltas: bool = True,
        told: Collection[str] = (),
    ) -> None:
        self._invocation = invocation
        self._client = client
        self._session_id = session_id
        self._renderer = renderer
        self._turn_id = turn_id
        self._asking = asking
        self._patient = patient
        self._stream_json = stream_json
        self._deltas = deltas
        self._told = frozenset(told)
        # Items that came while a question stood.
        self._held: list[SessionEvent | TextDelta] = []
        self._open: list[str] = []
        self._asker: asyncio.Task[None] | None = None

    async def follow(self, cursor: WatchCursor, *, until_idle: bool = False) -> str:
        """Shows what happens until the end; returns the turn's final state, empty if it is not known.

        Raises ApiError, FailedError when a question stands that nobody here may answer.
        """
        watch = self._client.sessions.watch(
            self._session_id,
            cursor=cursor,
            exclude_deltas=not self._deltas,
            until_idle=until_idle,
            on_reconnect=self._reconnecting,
        )
        state = ""
        try:
            async for item in watch:
                if self._turn_id and item.turn_id != self._turn_id:
                    await self._of_another_turn(item)
                    continue
                await self._item(item)
                if isinstance(item, SessionEvent) and item.payload.HasField("turn_ended"):
                    state = item.payload.turn_ended.state
                    if item.turn_id == self._turn_id:
                        break
        finally:
            await self._withdraw()
            await watch.aclose()
            self._renderer.finish()
        return state

    async def _of_another_turn(self, item: SessionEvent | TextDelta) -> None:
        if isinstance(item, SessionEvent) and item.payload.HasField("permission_requested"):
            request_id = item.payload.permission_requested.permission_request_id
            if request_id not in self._told and await self._tell(request_id):
                self._renderer.idle(self._renderer.before_start)

    async def _item(self, item: SessionEvent | TextDelta) -> None:
        if self._stream_json:
            print_json({_ITEM_KIND[type(item)]: to_json(item)}, line=True)
        if isinstance(item, TextDelta):
            self._show(item)
        elif item.payload.WhichOneof("kind") in ("permission_resolved", "turn_ended"):
            # These take a standing question away; what they say comes after it.
            await self._event(item)
            self._show(item)
        else:
            self._show(item)
            await self._event(item)

    def _show(self, item: SessionEvent | TextDelta) -> None:
        if self._stream_json:
            return
        if self._asker is not None and not self._asker.done():
            # Printed now, it would push the question out of sight.
            self._held.append(item)
            return
        self._flush()
        self._renderer.show(item)

    def _flush(self) -> None:
        held, self._held = self._held, []
        for item in held:
            self._renderer.show(item)

    async def _event(self, event: SessionEvent) -> None:
        payload = event.payload
        if payload.HasField("permission_requested"):
            request_id = payload.permission_requested.permission_request_id
            self._open.append(request_id)
            if not self._asking and await self._tell(request_id) and not self._patient:
                raise FailedError
        elif payload.HasField("permission_resolved"):
            request_id = payload.permission_resolved.permission_request_id
            if request_id in self._open:
                first = self._open[0] == request_id
                self._open.remove(request_id)
                if first:
                    await self._withdraw()
        elif payload.HasField("turn_ended"):
            self._open.clear()
            await self._withdraw()
        if self._asking and self._open and self._asker is None:
            self._asker = asyncio.create_task(self._ask(self._open[0]))

    async def _pending(self, request_id: str) -> PermissionRequest | None:
        async for request in self._client.permissions.list(
            self._session_id, states=[PermissionRequest.PENDING]
        ):
            if request.id == request_id:
                return request
        return None

    async def _ask(self, request_id: str) -> None:
        try:
            # The stream may tell of old questions: only the server knows whether this one still stands.
            request = await self._pending(request_id)
            if request is None:
                return
            self._renderer.finish()
            self._invocation.out.print()
            self._renderer.prompting(self._invocation.out)
            with Keyboard.opened() as keyboard:
                answer = await ask(self._invocation.out, keyboard, request.tool_use)
            self._renderer.prompting(None)
            if answer is None:
                # The terminal is gone; somebody else may still answer.
                self._asking = False
                await self._tell(request_id)
                return
            if answer.allowed:
                await self._client.permissions.allow(self._session_id, request_id)
            else:
                await self._client.permissions.deny(self._session_id, request_id, reason=answer.reason)
        except FailedPreconditionError as error:
            self._renderer.note(f"  · too late: {error.metadata.get('state', 'settled').lower()}")
        except ApiError as error:
            self._renderer.note(f"  ✗ the answer was not taken: {error.message}", "red")
            await self._tell(request_id)

    async def _withdraw(self) -> None:
        asker, self._asker = self._asker, None
        if asker is not None and not asker.done():
            asker.cancel()
        if asker is not None:
            with suppress(asyncio.CancelledError):
                await asker
        self._renderer.finish()
        self._flush()

    async def _tell(self, request_id: str) -> bool:
        """Prints how a question is answered; returns whether it still stands."""
        request = await self._pending(request_id)
        if request is None:
            return False
        for line in hint(request):
            self._renderer.note(line, "yellow")
        return True

    def _reconnecting(self, error: ApiError | None) -> None:
        if error is not None and not error.reason:
            self._renderer.idle("reconnecting")


def hint(request: PermissionRequest) -> list[str]:
    """Returns the lines that tell how a question is answered from another terminal."""
    asked = f"{one_line(request.tool_use.tool_name)} {one_line(main_argument(request.tool_use), 100)}"
    command = f"{request.session_id} {request.id}"
    return [
        f"? a person is asked: {asked}",
        f"  ai-agent sessions approve {command}",
        f"  ai-agent sessions deny {command} --reason '…'",
    ]


async def tell_queued(client: Client, renderer: Renderer, turn: Turn) -> set[str]:
    """Tells that a turn is queued, if it is, and which questions to people keep the turns before it.

    Returns the ids of those questions. Raises ApiError.
    """
    if not turn.queue_position:
        return set()
    renderer.note(f"· queued behind {count_of(turn.queue_position, 'other turn')}")
    told: set[str] = set()
    async for request in client.permissions.list(turn.session_id, states=[PermissionRequest.PENDING]):
        if request.turn_id != turn.id:
            told.add(request.id)
            for line in hint(request):
                renderer.note(line, "yellow")
    renderer.before_start = "queued"
    return told


class Interrupts:
    """Ctrl-C during a turn: the first stops the turn, the second leaves it to itself."""

    def __init__(self, client: Client, session_id: str, turn_id: str, renderer: Renderer) -> None:
        self._client = client
        self._session_id = session_id
        self._turn_id = turn_id
        self._renderer = renderer
        self._count = 0
        self._stopping: asyncio.Task[None] | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles Ctrl-C as long as the block runs; the second one cancels the task that runs the block."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()

        def pressed() -> None:
            self._count += 1
            if self._count == 1:
                self._renderer.note("stopping the turn; Ctrl-C again leaves it to itself", "yellow")
                self._renderer.idle("stopping")
                self._stopping = asyncio.create_task(self._stop())
            elif task is not None:
                task.cancel()

        loop.add_signal_handler(signal.SIGINT, pressed)
        try:
            yield
        except asyncio.CancelledError:
            if self._count > 1:
                self._renderer.note(
                    f"left; the turn goes on. `ai-agent sessions watch {self._session_id}` shows it", "yellow"
                )
            raise
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            if self._stopping is not None:
                self._stopping.cancel()

    async def _stop(self) -> None:
        try:
            await self._client.sessions.interrupt(
                self._session_id, turn_id=self._turn_id, reason="Ctrl-C in the terminal"
            )
        except ApiError as error:
            if error.reason != "TURN_ENDED":
                self._renderer.note(f"could not stop the turn: {error.message}", "red")
