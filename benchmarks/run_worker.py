"""One worker process: the worker, its recorder and the queries are those of the service; the sessions are played.

Every call to them is answered at once. Reads one line of JSON, prints one when it works, and ends with its standard
input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.telemetry import configure_logging
from services.scheduler.domain.runs import TurnNow, TurnState
from services.scheduler.store.system_queries import RunQueries
from services.scheduler.usecases.worker import RunWorker
from services.scheduler.usecases.worker.ports import NewSession, Owner

DONE = TurnNow(TurnState.SUCCEEDED, result="done")


class PlayedSessions:
    """Answers at once, the same request id always alike."""

    async def create_session(self, owner: Owner, new: NewSession, request_id: str) -> UUID:
        """A session that nobody keeps."""
        return uuid5(owner.user_id, request_id)

    async def send_message(self, owner: Owner, session_id: UUID, message: str, request_id: str) -> UUID:
        """A turn that nobody keeps."""
        return uuid5(session_id, request_id)

    async def wait_turn(self, owner: Owner, session_id: UUID, turn_id: UUID, seconds: int) -> TurnNow:
        """Has nothing to do."""
        return DONE

    async def interrupt(self, owner: Owner, session_id: UUID, turn_id: UUID, request_id: str) -> None:
        """Has nothing to stop."""


async def work() -> None:
    """Works until standard input ends."""
    told = json.loads(sys.stdin.readline())
    configure_logging("INFO", file=Path(told["log"]))
    database = Database(told["application_url"], told["system_url"], application_name="aiagent/scheduler")
    worker = RunWorker(
        RunQueries(database),
        PlayedSessions(),
        holder=str(uuid4()),
        clock=SystemClock(),
        places=told["places"],
    )
    await worker.start()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await worker.drain()
    await database.close()


if __name__ == "__main__":
    uvloop.run(work())
