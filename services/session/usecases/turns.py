"""Turns: send a message, interrupt, read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from services.kernel.context import current_request_id
from services.kernel.identity import Caller
from services.kernel.ids import IdSource
from services.session.domain import events
from services.session.domain.entities import (
    MAX_QUEUED_TURNS,
    LogEvent,
    Message,
    Session,
    ToolCall,
    Turn,
    Usage,
)
from services.session.domain.errors import (
    session_busy,
    session_state_invalid,
    turn_ended,
    turn_not_found,
    turn_queue_full,
)
from services.session.domain.events import EventDraft
from services.session.domain.states import TAKES_MESSAGES, SessionState, TurnState, session_state_for
from services.session.usecases.contents import ContentKeeper
from services.session.usecases.ports import (
    DriverWaker,
    LiveFeedPort,
    NewTurn,
    SessionStore,
    SessionTransaction,
)
from services.session.usecases.queue import placed
from services.session.usecases.sessions import canonical, require_writer


class WhenBusy(StrEnum):
    """What to do with a message while a turn is open."""

    ENQUEUE = "ENQUEUE"
    REJECT = "REJECT"
    INTERRUPT = "INTERRUPT"


@dataclass(frozen=True, slots=True)
class SendMessage:
    """A message to a session."""

    session_id: UUID
    message: str
    when_busy: WhenBusy
    request_id: str


class Turns:
    """The use cases."""

    def __init__(
        self,
        store: SessionStore,
        ids: IdSource,
        contents: ContentKeeper,
        feed: LiveFeedPort,
        driver: DriverWaker,
    ) -> None:
        """Args: store: the database; ids: names turns; contents: large texts; feed: tells watchers; driver: wakes."""
        self._store = store
        self._ids = ids
        self._contents = contents
        self._feed = feed
        self._driver = driver

    async def send(self, caller: Caller, sent: SendMessage) -> Turn:
        """Accepts a message, which starts a turn.

        Raises:
            ServiceError: as documented at SessionService.SendMessage.
        """
        require_writer(caller)
        turn_id, message_id = self._ids.new_id(), self._ids.new_id()
        written: list[LogEvent] = []
        async with self._store.begin(caller) as transaction:
            # Before anything is kept for it: only a session that the caller may see takes a message.
            await transaction.get_session(sent.session_id)

            async def run() -> bytes:
                head = await transaction.lock_head(sent.session_id)
                session = await transaction.get_session(sent.session_id)
                if session.state not in TAKES_MESSAGES:
                    raise session_state_invalid(session.state)
                open_turns = await transaction.open_turns(sent.session_id)
                drafts, ended = await self._make_way(transaction, caller, session, open_turns, sent.when_busy)
                message = await self._contents.keep(sent.session_id, sent.message)
                first = head.last_sequence + len(drafts) + 1
                drafts += [
                    EventDraft(events.UserMessage(message_id, message, caller.user_id), turn_id),
                    EventDraft(events.TurnStateChanged(None, TurnState.QUEUED), turn_id),
                ]
                values: dict[str, object] = {}
                if len(ended) == len(open_turns):
                    values["current_turn_id"] = turn_id
                    if session.state != SessionState.CONNECTING:
                        values["state"] = SessionState.CONNECTING.value
                        change = events.SessionStateChanged(session.state, SessionState.CONNECTING)
                        drafts.append(EventDraft(change))
                written.extend(await transaction.append(head, drafts))
                new = NewTurn(turn_id, session.user_id, message_id, message, current_request_id())
                await transaction.insert_turn(head, new, first, first + 1)
                await transaction.update_session(sent.session_id, values, {"messages": 1})
                return turn_id.bytes

            request = canonical(sent.session_id, sent.message, sent.when_busy)
            made = await transaction.once(
                "SendMessage", sent.request_id, request, run, lives_with=sent.session_id
            )
            turn = await transaction.get_turn(sent.session_id, UUID(bytes=made))
        await self._feed.publish_events(sent.session_id, written)
        await self._driver.wake(sent.session_id)
        (turn,) = await placed(self._store, [turn])
        return turn

    async def _make_way(
        self,
        transaction: SessionTransaction,
        caller: Caller,
        session: Session,
        open_turns: Sequence[Turn],
        when_busy: WhenBusy,
    ) -> tuple[list[EventDraft], list[Turn]]:
        """Decides what becomes of the open turns; returns the events of it, and the turns that are over with it."""
        if not open_turns:
            return [], []
        if when_busy is WhenBusy.REJECT:
            raise session_busy(open_turns[0].id)
        if when_busy is WhenBusy.ENQUEUE:
            if sum(turn.state is TurnState.QUEUED for turn in open_turns) >= MAX_QUEUED_TURNS:
                raise turn_queue_full(MAX_QUEUED_TURNS)
            return [], []
        drafts: list[EventDraft] = []
        ended = []
        for turn in open_turns:
            requested = await transaction.request_interrupt(turn.id)
            if requested:
                asked = events.InterruptRequested(caller.user_id, "another message was sent")
                drafts.append(EventDraft(asked, turn.id))
            if turn.state is TurnState.QUEUED:
                drafts.append(EventDraft(_ended_before_it_began(), turn.id))
                await transaction.end_queued_turn(turn.id, session.last_sequence + len(drafts))
                ended.append(turn)
        return drafts, ended

    async def interrupt(
        self, caller: Caller, session_id: UUID, turn_id: UUID | None, reason: str, request_id: str
    ) -> Turn:
        """Stops a turn: one that is queued at once, one that has begun through its driver.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND or TURN_NOT_FOUND; FAILED_PRECONDITION with TURN_ENDED.
        """
        require_writer(caller)
        written: list[LogEvent] = []
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)

            async def run() -> bytes:
                head = await transaction.lock_head(session_id)
                turn = await self._find(transaction, session_id, turn_id)
                if turn.state.final:
                    raise turn_ended(turn.state)
                drafts = []
                if await transaction.request_interrupt(turn.id):
                    drafts.append(EventDraft(events.InterruptRequested(caller.user_id, reason), turn.id))
                if turn.state is TurnState.QUEUED:
                    drafts.append(EventDraft(_ended_before_it_began(), turn.id))
                    await transaction.end_queued_turn(turn.id, head.last_sequence + len(drafts))
                    drafts += await self._after(transaction, session_id, turn)
                written.extend(await transaction.append(head, drafts))
                return turn.id.bytes

            request = canonical(session_id, turn_id, reason)
            made = await transaction.once("InterruptTurn", request_id, request, run)
            turn = await transaction.get_turn(session_id, UUID(bytes=made))
        await self._feed.publish_events(session_id, written)
        await self._driver.wake(session_id)
        return turn

    async def _find(self, transaction: SessionTransaction, session_id: UUID, turn_id: UUID | None) -> Turn:
        if turn_id is not None:
            return await transaction.get_turn(session_id, turn_id)
        open_turns = await transaction.open_turns(session_id)
        if not open_turns:
            raise turn_not_found(None)
        return open_turns[0]

    async def _after(
        self, transaction: SessionTransaction, session_id: UUID, ended: Turn
    ) -> list[EventDraft]:
        """Makes the next turn current when a queued one has ended."""
        session = await transaction.get_session(session_id)
        following = await transaction.open_turns(session_id)
        state = session_state_for(following[0].state if following else None)
        values: dict[str, object] = {"current_turn_id": following[0].id if following else None}
        drafts = []
        if state != session.state and session.state in TAKES_MESSAGES:
            values["state"] = state.value
            drafts.append(EventDraft(events.SessionStateChanged(session.state, state)))
        await transaction.update_session(session_id, values)
        return drafts

    # Reading

    async def get(self, caller: Caller, session_id: UUID, turn_id: UUID) -> Turn:
        """Returns a turn.

        Raises:
            ServiceError: NOT_FOUND with SESSION_NOT_FOUND or TURN_NOT_FOUND.
        """
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            turn = await transaction.get_turn(session_id, turn_id)
        (turn,) = await placed(self._store, [turn])
        return turn

    async def list_page(
        self, caller: Caller, session_id: UUID, states: Sequence[str], before: int | None, limit: int
    ) -> list[Turn]:
        """Returns at most `limit` turns, the newest first, numbered below `before`."""
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            found = await transaction.list_turns(session_id, states, before, limit)
        return await placed(self._store, found)

    async def list_messages(
        self,
        caller: Caller,
        session_id: UUID,
        turn_id: UUID | None,
        roles: Sequence[str],
        after: int,
        limit: int,
    ) -> list[Message]:
        """Returns at most `limit` messages after a sequence, in order."""
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            return await transaction.list_messages(session_id, turn_id, roles, after, limit)

    async def list_tool_calls(
        self,
        caller: Caller,
        session_id: UUID,
        turn_id: UUID | None,
        tool_name: str,
        states: Sequence[str],
        after: int,
        limit: int,
    ) -> list[ToolCall]:
        """Returns at most `limit` tool calls after a sequence, in order."""
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            return await transaction.list_tool_calls(session_id, turn_id, tool_name, states, after, limit)

    async def list_events(
        self, caller: Caller, session_id: UUID, turn_id: UUID | None, after: int, limit: int
    ) -> list[LogEvent]:
        """Returns at most `limit` events after a sequence, in order."""
        async with self._store.begin(caller) as transaction:
            await transaction.get_session(session_id)
            return await transaction.list_events(session_id, turn_id, after, limit)


def _ended_before_it_began() -> events.TurnEnded:
    return events.TurnEnded(
        state=TurnState.INTERRUPTED,
        failure=None,
        usage=Usage(),
        cost_usd=0.0,
        duration_ms=0,
        model_calls=0,
        structured_output_json="",
    )
