"""`client.runs`: tasks as they are carried out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import scheduler_service_pb2_grpc
from aiagent.scheduler.v1.run_pb2 import TaskRun
from aiagent_client.connection import Connection, Metadata
from aiagent_client.errors import ApiError
from aiagent_client.resuming import SILENCE_SECONDS, ResumingStream
from aiagent_client.values import struct_of

if TYPE_CHECKING:
    from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

FINAL_RUN_STATES: Final = frozenset(
    {TaskRun.SUCCEEDED, TaskRun.FAILED, TaskRun.CANCELLED, TaskRun.TIMED_OUT, TaskRun.SKIPPED}
)
_LOOK_SECONDS: Final = 1.0


class RunWatch(ResumingStream[TaskRun]):
    """A run as it stands, then each time it has changed, as an async iterator that ends when the run is over.

    Lost connections, expired tokens and servers that shut down are bridged: nothing comes twice, and what changed
    meanwhile comes as one. It raises ApiError for what resuming cannot mend: the run is not there or was removed, the
    login has ended, or the server stayed away for `give_up_after` seconds.

    `cursor` is where the iterator stands after the run last returned: store it to go on later, in another process.
    """

    def __init__(
        self,
        connection: Connection,
        stub: SchedulerServiceAsyncStub,
        task_run_id: str,
        *,
        cursor: int = 0,
        give_up_after: float = 300.0,
        silence: float = SILENCE_SECONDS,
        on_reconnect: Callable[[ApiError | None], None] | None = None,
    ) -> None:
        self.task_run_id = task_run_id
        self.cursor = cursor
        self._stub = stub
        self._over = True
        super().__init__(connection, give_up_after=give_up_after, silence=silence, on_reconnect=on_reconnect)

    @property
    def _what(self) -> str:
        return f"run {self.task_run_id}"

    def _finished(self) -> bool:
        # Where nothing came the cursor was that of the end.
        return self._over

    def _open(self, metadata: Metadata) -> object:
        request = pb.WatchTaskRunRequest(task_run_id=self.task_run_id, cursor=self.cursor)
        return self._stub.WatchTaskRun(request, metadata=metadata)

    def _take(self, response: pb.WatchTaskRunResponse) -> Iterator[TaskRun]:
        if response.HasField("task_run") and response.cursor > self.cursor:
            self.cursor = response.cursor
            self._over = response.task_run.state in FINAL_RUN_STATES
            yield response.task_run
        elif not response.HasField("task_run"):
            # A checkpoint: it goes on.
            self._over = False


class Runs:
    """Calls of the scheduler service about runs. All of them raise ApiError; the list pages by itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: SchedulerServiceAsyncStub = scheduler_service_pb2_grpc.SchedulerServiceStub(
            connection.channel
        )

    async def start(
        self, task_id: str, variables: Mapping[str, Any] | None = None, *, request_id: str = ""
    ) -> TaskRun:
        """Runs a task now, with values of its variables by name: anything that JSON can hold.

        Raises InvalidArgumentError, whose field violations name what is missing, unknown or of another type, and
        InvalidValueError for what cannot be sent.
        """
        request = pb.RunTaskRequest(
            task_id=task_id, variables=struct_of(variables or {}, "variables"), request_id=request_id
        )
        return await self._connection.call(self._stub.RunTask, request)

    async def get(self, task_run_id: str) -> TaskRun:
        """Returns a run. Raises NotFoundError with TASK_RUN_NOT_FOUND."""
        return await self._connection.call(
            self._stub.GetTaskRun, pb.GetTaskRunRequest(task_run_id=task_run_id)
        )

    async def wait(self, task_run_id: str, *, look_seconds: float = _LOOK_SECONDS) -> TaskRun:
        """Returns a run when it is over; until then it looks every so many seconds. Bound it by `asyncio.timeout`."""
        while True:
            run = await self.get(task_run_id)
            if run.state in FINAL_RUN_STATES:
                return run
            await asyncio.sleep(look_seconds)

    def watch(
        self,
        task_run_id: str,
        *,
        cursor: int = 0,
        give_up_after: float = 300.0,
        on_reconnect: Callable[[ApiError | None], None] | None = None,
    ) -> RunWatch:
        """Follows a run until it is over, from `cursor` on: a stored one. See RunWatch."""
        return RunWatch(
            self._connection,
            self._stub,
            task_run_id,
            cursor=cursor,
            give_up_after=give_up_after,
            on_reconnect=on_reconnect,
        )

    async def list(
        self,
        *,
        task_id: str = "",
        schedule_id: str = "",
        backfill_id: str = "",
        states: Sequence[TaskRun.State.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[TaskRun]:
        """Yields the caller's runs, the newest first, without what may be large: `get` has it."""
        request = pb.ListTaskRunsRequest(
            task_id=task_id,
            schedule_id=schedule_id,
            backfill_id=backfill_id,
            states=states,
            page_size=page_size,
        )
        while True:
            page = await self._connection.call(self._stub.ListTaskRuns, request)
            for run in page.task_runs:
                yield run
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, task_run_id: str, *, request_id: str = "") -> TaskRun:
        """Asks for the end of a run. Raises FailedPreconditionError with TASK_RUN_ENDED."""
        request = pb.CancelTaskRunRequest(task_run_id=task_run_id, request_id=request_id)
        return await self._connection.call(self._stub.CancelTaskRun, request)

    async def retry(self, task_run_id: str, *, request_id: str = "") -> TaskRun:
        """Does a run again that ended without success, and returns the new one.

        Raises FailedPreconditionError with TASK_RUN_NOT_RETRYABLE.
        """
        request = pb.RetryTaskRunRequest(task_run_id=task_run_id, request_id=request_id)
        return await self._connection.call(self._stub.RetryTaskRun, request)
