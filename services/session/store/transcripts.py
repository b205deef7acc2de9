"""Transcripts: written and read by executors, which work for every tenant, with the system role.

The head's lock makes them serial with the beginning of attempts: once a later attempt has begun, an older one adds
nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db import Database
from services.session.domain.entities import Head
from services.session.domain.errors import attempt_superseded
from services.session.domain.transcripts import AttemptName, NewEntry, TranscriptEntry
from services.session.store.event_log import lock_head
from services.session.store.tables import session_heads, transcript_entries, turns


class TranscriptQueries:
    """See `usecases.transcripts.TranscriptStore`."""

    def __init__(self, database: Database) -> None:
        """Args: database: its system role is used."""
        self._database = database

    async def append(
        self, attempt: AttemptName, cli_session_id: UUID, subpath: str, entries: Sequence[NewEntry]
    ) -> int:
        """Adds what is new of the entries; returns the session's last position."""
        async with self._database.system() as connection:
            head = await lock_head(connection, attempt.session_id)
            await _require_newest(connection, attempt)
            position = await _position(connection, head)
            of_transcript = sa.and_(
                transcript_entries.c.session_id == attempt.session_id,
                transcript_entries.c.cli_session_id == cli_session_id,
                transcript_entries.c.subpath == subpath,
            )
            known = set(
                (
                    await connection.execute(
                        sa.select(transcript_entries.c.entry_uuid).where(
                            of_transcript,
                            transcript_entries.c.entry_uuid.in_([entry.uuid for entry in entries]),
                        )
                    )
                ).scalars()
            )
            # The first of two with one uuid stays.
            new = {entry.uuid: entry for entry in reversed(entries) if entry.uuid not in known}
            ordered = [entry for entry in entries if new.get(entry.uuid) is entry]
            if not ordered:
                return position
            await connection.execute(
                sa.insert(transcript_entries),
                [
                    {
                        "session_id": attempt.session_id,
                        "organization_id": head.organization_id,
                        "position": position + number,
                        "cli_session_id": cli_session_id,
                        "subpath": subpath,
                        "entry_uuid": entry.uuid,
                        "entry": entry.json,
                    }
                    for number, entry in enumerate(ordered, 1)
                ],
            )
            position += len(ordered)
            await connection.execute(
                sa.update(session_heads)
                .where(session_heads.c.session_id == attempt.session_id)
                .values(transcript_position=position)
            )
            return position

    async def position(self, attempt: AttemptName) -> int:
        """The session's last position."""
        async with self._database.system() as connection:
            head = await lock_head(connection, attempt.session_id)
            await _require_newest(connection, attempt)
            return await _position(connection, head)

    async def page(
        self, session_id: UUID, cli_session_id: UUID, after: int, limit: int, limit_bytes: int
    ) -> list[TranscriptEntry]:
        """The next entries of a conversation: as many as both limits allow, at least one if there is one."""
        wanted = (
            sa.select(
                transcript_entries.c.position,
                sa.func.sum(sa.func.octet_length(transcript_entries.c.entry))
                .over(order_by=transcript_entries.c.position)
                .label("bytes"),
            )
            .where(
                transcript_entries.c.session_id == session_id,
                transcript_entries.c.cli_session_id == cli_session_id,
                transcript_entries.c.position > after,
            )
            .order_by(transcript_entries.c.position)
            .limit(limit)
            .subquery()
        )
        first = sa.select(sa.func.min(wanted.c.position)).scalar_subquery()
        async with self._database.system() as connection:
            rows = await connection.execute(
                sa.select(transcript_entries)
                .join(wanted, wanted.c.position == transcript_entries.c.position)
                .where(
                    transcript_entries.c.session_id == session_id,
                    sa.or_(wanted.c.bytes <= limit_bytes, wanted.c.position == first),
                )
                .order_by(transcript_entries.c.position)
            )
            return [TranscriptEntry(row.position, row.subpath, row.entry_uuid, row.entry) for row in rows]


async def _require_newest(connection: AsyncConnection, attempt: AttemptName) -> None:
    """Makes sure, under the head's lock, that no later attempt has begun: turns begin in the order of their numbers.

    Raises:
        ServiceError: FAILED_PRECONDITION with ATTEMPT_SUPERSEDED.
    """
    newest = (
        await connection.execute(
            sa.select(turns.c.id, turns.c.attempt)
            .where(turns.c.session_id == attempt.session_id, turns.c.attempt > 0)
            .order_by(turns.c.number.desc())
            .limit(1)
        )
    ).one_or_none()
    if newest is None or (newest.id, newest.attempt) != (attempt.turn_id, attempt.attempt):
        raise attempt_superseded(attempt.attempt)


async def _position(connection: AsyncConnection, head: Head) -> int:
    return int(
        (
            await connection.execute(
                sa.select(session_heads.c.transcript_position).where(
                    session_heads.c.session_id == head.session_id
                )
            )
        ).scalar_one()
    )
