"""Applies the items of one attempt: each batch is one transaction of events, projections and the applied offset."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from services.kernel.errors import ServiceError
from services.kernel.ids import IdSource
from services.session.domain import events
from services.session.domain.driving import (
    Changes,
    NewMessage,
    ToolCallUpdate,
)
from services.session.domain.entities import Content, LogEvent
from services.session.domain.states import ToolCallState, TurnState
from services.session.domain.turn_items import (
    AgentStarted,
    AttemptEnded,
    BlockCompleted,
    BlockDelta,
    DecisionNeeded,
    Noticed,
    Spent,
    ToolEnded,
    ToolUsed,
    TurnItem,
)
from services.session.usecases.contents import ContentKeeper
from services.session.usecases.driver.attempt import Attempt
from services.session.usecases.driver.decisions import Decider, Verdicts
from services.session.usecases.driver.ending import end_attempt, spend
from services.session.usecases.driver.ports import DriverStore, FencedTransaction
from services.session.usecases.driver.reading import read_ahead
from services.session.usecases.ports import ExecutorPort, LiveFeedPort

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DriverPorts:
    """What a driver works with."""

    store: DriverStore
    executors: ExecutorPort
    feed: LiveFeedPort
    contents: ContentKeeper
    ids: IdSource


class AttemptRunner:
    """Follows the item stream of an attempt."""

    def __init__(self, ports: DriverPorts, decider: Decider, attempt: Attempt) -> None:
        """Args: ports: what it works with; decider: decides tool calls; attempt: the attempt to follow."""
        self._ports = ports
        self._decider = decider
        self.attempt = attempt

    async def follow(self, stream: AsyncGenerator[Sequence[TurnItem]]) -> None:
        """Applies items until the stream ends; `attempt.outcome` is set if the attempt ended with it.

        Raises:
            ServiceError: The stream broke; it may be attached again.
            LeaseLost: The lease is another's by now.
        """
        async with aclosing(read_ahead(stream)) as batches:
            async for batch in batches:
                # The first batch is empty: it says that the executor has taken the call.
                self.attempt.connected = True
                await self._take(batch)

    async def _take(self, batch: Sequence[TurnItem]) -> None:
        durable: list[TurnItem] = []
        for item in batch:
            if item.offset <= self.attempt.turn.applied_offset:
                continue
            if isinstance(item, BlockDelta):
                # Whatever came before a delta must be in the log before it is shown.
                if durable:
                    await self._apply(durable)
                    durable = []
                await self._preview(item)
            else:
                durable.append(item)
        if durable:
            await self._apply(durable)

    async def _preview(self, delta: BlockDelta) -> None:
        attempt = self.attempt
        await self._ports.feed.publish_delta(
            attempt.session.id,
            attempt.last_sequence,
            attempt.turn.id,
            attempt.key.attempt,
            delta.block,
            delta.text_offset,
            delta.text,
            delta.thinking,
        )

    async def _apply(self, items: Sequence[TurnItem]) -> None:
        attempt, turn = self.attempt, self.attempt.turn
        kept = await self._keep_texts(items)
        changes = Changes()
        verdicts = Verdicts()
        offset = items[-1].offset
        async with attempt.lock:
            async with self._ports.store.fenced(attempt.lease) as transaction:
                for item in items:
                    await self._fold(item, kept, changes, verdicts, transaction)
                changes.turn["applied_offset"] = offset
                written = await transaction.write(turn, changes, expected_offset=turn.applied_offset)
            turn.applied_offset = offset
        await self.publish(written)
        # The end, too: until then the executor keeps what it has of the attempt. It counts as a heartbeat, whose time
        # was stored just now: before decisions, which may take their time.
        await self._acknowledge(offset)
        await self.send(verdicts)

    async def _acknowledge(self, offset: int) -> None:
        # The items are in the database: should this call fail, they are dropped with the next one.
        try:
            await self._ports.executors.acknowledge(self.attempt.key, self.attempt.lease.epoch, offset)
        except ServiceError as error:
            _log.info("acknowledgement failed", reason=error.reason)

    async def publish(self, written: Sequence[LogEvent]) -> None:
        """Hands committed events to the live feed."""
        if written:
            self.attempt.last_sequence = written[-1].sequence
            await self._ports.feed.publish_events(self.attempt.session.id, written)

    async def send(self, verdicts: Verdicts) -> None:
        """Tells the executor what was decided and committed.

        Should it fail or this process die here, the attempt is attached to anew, and the decision sent again: it is in
        the log.
        """
        for tool_use, allow, reason in verdicts.decided:
            await self._ports.executors.decide(
                self.attempt.key, self.attempt.lease.epoch, tool_use, allow, reason
            )

    async def _keep_texts(self, items: Sequence[TurnItem]) -> dict[int, Content]:
        kept: dict[int, Content] = {}
        hashes = {name: call.input_hash for name, call in self.attempt.inputs.items()}
        for item in items:
            match item:
                case BlockCompleted() | ToolEnded():
                    kept[item.offset] = await self._ports.contents.keep(self.attempt.session.id, item.text)
                case ToolUsed() | DecisionNeeded():
                    call = item.tool_use
                    known = hashes.get(call.tool_use_id)
                    if known is None or (known != call.input_hash and isinstance(item, DecisionNeeded)):
                        hashes[call.tool_use_id] = call.input_hash
                        kept[item.offset] = await self._ports.contents.keep(
                            self.attempt.session.id, call.input_json
                        )
        return kept

    async def _fold(
        self,
        item: TurnItem,
        kept: dict[int, Content],
        changes: Changes,
        verdicts: Verdicts,
        transaction: FencedTransaction,
    ) -> None:
        match item:
            case AgentStarted():
                self._agent_started(item, changes, transaction.now)
            case BlockCompleted():
                self._block_completed(item, changes.keep(kept[item.offset]), changes)
            case ToolUsed():
                self._decider.record(self.attempt, item.tool_use, kept.get(item.offset), changes)
            case DecisionNeeded():
                await self._decider.decide(
                    self.attempt, item.tool_use, kept.get(item.offset), changes, verdicts, transaction
                )
            case ToolEnded():
                self._tool_ended(item, changes.keep(kept[item.offset]), changes)
            case Noticed():
                changes.add(events.Notice(item.code, item.message), self.attempt.turn.id)
            case Spent():
                spend(self.attempt, item, changes)
            case AttemptEnded():
                await end_attempt(self.attempt, item, changes, transaction)
            case BlockDelta():
                raise AssertionError("deltas are previewed, not applied")

    def _agent_started(self, item: AgentStarted, changes: Changes, now: datetime) -> None:
        session, turn = self.attempt.session, self.attempt.turn
        if turn.state is TurnState.STARTING:
            changes.move_turn(session, turn, TurnState.RUNNING, now)
        if item.cli_session_id is not None:
            session.cli_session_id = item.cli_session_id
            changes.session["cli_session_id"] = item.cli_session_id
        changes.session["offline_model"] = item.offline_model

    def _block_completed(self, item: BlockCompleted, content: Content, changes: Changes) -> None:
        message_id: UUID = self._ports.ids.new_id()
        turn = self.attempt.turn
        draft = changes.add(
            events.AssistantMessage(
                message_id=message_id,
                attempt=self.attempt.key.attempt,
                block=item.block,
                thinking=item.thinking,
                content=content,
                model=item.model,
                parent_tool_use_id=item.parent_tool_use_id,
            ),
            turn.id,
        )
        changes.messages.append(
            NewMessage(
                draft=draft,
                id=message_id,
                turn_id=turn.id,
                thinking=item.thinking,
                content=content,
                model=item.model,
                parent_tool_use_id=item.parent_tool_use_id,
            )
        )
        changes.count("messages")
        if not item.thinking and not item.parent_tool_use_id:
            changes.turn |= {
                "result_text": content.text,
                "result_content_id": content.content_id,
                "result_size_bytes": content.size_bytes or None,
                "result_sha256": content.sha256 or None,
            }

    def _tool_ended(self, item: ToolEnded, content: Content, changes: Changes) -> None:
        state = self.attempt.calls.get(item.tool_use_id)
        if state is None:
            _log.warning("result of an unknown tool call", tool_use_id=item.tool_use_id)
            return
        if state is ToolCallState.WAITING:
            # Nobody has decided it: the executor denied it by itself on the way to a stop. The question stands.
            return
        changes.add(events.ToolEnded(item.tool_use_id, content, item.is_error), self.attempt.turn.id)
        if state is ToolCallState.DENIED:
            ended = ToolCallState.DENIED
        else:
            ended = ToolCallState.FAILED if item.is_error else ToolCallState.SUCCEEDED
        self.attempt.calls[item.tool_use_id] = ended
        changes.tool_call_updates.append(
            ToolCallUpdate(
                self.attempt.key.attempt,
                item.tool_use_id,
                ended,
                result=content,
                result_is_error=item.is_error,
                ended=True,
            )
        )
