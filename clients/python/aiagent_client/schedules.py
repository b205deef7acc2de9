"""`client.schedules`: when tasks run by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf.field_mask_pb2 import FieldMask

from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from aiagent.scheduler.v1 import scheduler_service_pb2_grpc
from aiagent.scheduler.v1.schedule_pb2 import Schedule, ScheduleBackfill, ScheduleFire, ScheduleSpec
from aiagent_client.connection import Connection
from aiagent_client.values import struct_of

if TYPE_CHECKING:
    from aiagent.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

_UNLIMITED = -1


class Schedules:
    """Calls of the scheduler service about schedules. All of them raise ApiError; the list pages by itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: SchedulerServiceAsyncStub = scheduler_service_pb2_grpc.SchedulerServiceStub(
            connection.channel
        )

    async def create(
        self,
        task_id: str,
        spec: ScheduleSpec,
        *,
        name: str = "",
        variables: Mapping[str, Any] | None = None,
        overlap_policy: Schedule.OverlapPolicy.ValueType = Schedule.OVERLAP_POLICY_UNSPECIFIED,
        catch_up_window: timedelta | None = None,
        pause_on_failure: bool = False,
        remaining_runs: int | None = None,
        request_id: str = "",
    ) -> Schedule:
        """Creates a schedule of a task; `variables` are JSON values by name.

        Raises InvalidValueError for a value that cannot be sent, as `update`.
        """
        request = pb.CreateScheduleRequest(
            task_id=task_id,
            name=name,
            spec=spec,
            overlap_policy=overlap_policy,
            pause_on_failure=pause_on_failure,
            request_id=request_id,
        )
        request.variables.CopyFrom(struct_of(variables or {}, "variables"))
        if remaining_runs is not None:
            request.remaining_runs = remaining_runs
        if catch_up_window is not None:
            request.catch_up_window.FromTimedelta(catch_up_window)
        return await self._connection.call(self._stub.CreateSchedule, request)

    async def get(self, schedule_id: str) -> Schedule:
        """Returns a schedule. Raises NotFoundError with SCHEDULE_NOT_FOUND."""
        request = pb.GetScheduleRequest(schedule_id=schedule_id)
        return await self._connection.call(self._stub.GetSchedule, request)

    async def list(
        self, *, task_id: str = "", states: Sequence[Schedule.State.ValueType] = (), page_size: int = 0
    ) -> AsyncIterator[Schedule]:
        """Yields the caller's schedules, the newest first."""
        request = pb.ListSchedulesRequest(task_id=task_id, states=states, page_size=page_size)
        while True:
            page = await self._connection.call(self._stub.ListSchedules, request)
            for schedule in page.schedules:
                yield schedule
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update(
        self,
        schedule_id: str,
        *,
        name: str | None = None,
        spec: ScheduleSpec | None = None,
        variables: Mapping[str, Any] | None = None,
        overlap_policy: Schedule.OverlapPolicy.ValueType | None = None,
        catch_up_window: timedelta | None = None,
        pause_on_failure: bool | None = None,
        remaining_runs: int | None = None,
        etag: str = "",
    ) -> Schedule:
        """Changes what is given; `spec` and `variables` are replaced as a whole, `remaining_runs` of -1 means no limit.

        Raises AbortedError with ETAG_MISMATCH when `etag` is not that of the current version.
        """
        request = pb.UpdateScheduleRequest(schedule_id=schedule_id, etag=etag, update_mask=FieldMask())
        plain = {
            "name": name,
            "overlap_policy": overlap_policy,
            "pause_on_failure": pause_on_failure,
            "remaining_runs": remaining_runs,
        }
        for field, value in plain.items():
            if value is not None:
                request.update_mask.paths.append(field)
                if not (field == "remaining_runs" and value == _UNLIMITED):
                    setattr(request, field, value)
        if spec is not None:
            request.update_mask.paths.append("spec")
            request.spec.CopyFrom(spec)
        if variables is not None:
            request.update_mask.paths.append("variables")
            request.variables.CopyFrom(struct_of(variables, "variables"))
        if catch_up_window is not None:
            request.update_mask.paths.append("catch_up_window")
            request.catch_up_window.FromTimedelta(catch_up_window)
        return await self._connection.call(self._stub.UpdateSchedule, request)

    async def delete(self, schedule_id: str, *, etag: str = "", request_id: str = "") -> None:
        """Deletes a schedule."""
        request = pb.DeleteScheduleRequest(schedule_id=schedule_id, etag=etag, request_id=request_id)
        await self._connection.call(self._stub.DeleteSchedule, request)

    async def pause(self, schedule_id: str, note: str = "", *, request_id: str = "") -> Schedule:
        """Keeps a schedule from firing until it is resumed."""
        request = pb.PauseScheduleRequest(schedule_id=schedule_id, note=note, request_id=request_id)
        return await self._connection.call(self._stub.PauseSchedule, request)

    async def resume(self, schedule_id: str, note: str = "", *, request_id: str = "") -> Schedule:
        """Lets a schedule fire again, from its next fire on; what it missed is not made."""
        request = pb.ResumeScheduleRequest(schedule_id=schedule_id, note=note, request_id=request_id)
        return await self._connection.call(self._stub.ResumeSchedule, request)

    async def preview(
        self, of: str | ScheduleSpec, *, count: int = 10, after: datetime | None = None
    ) -> Sequence[ScheduleFire]:
        """Returns the next fires of a schedule, by its id, or of a spec that is not kept; after now, or `after`."""
        request = pb.PreviewScheduleRequest(count=count)
        if isinstance(of, str):
            request.schedule_id = of
        else:
            request.spec.CopyFrom(of)
        if after is not None:
            request.after.FromDatetime(after)
        return (await self._connection.call(self._stub.PreviewSchedule, request)).fires

    async def backfill(
        self,
        schedule_id: str,
        start_time: datetime,
        end_time: datetime,
        *,
        overlap_policy: Schedule.OverlapPolicy.ValueType = Schedule.OVERLAP_POLICY_UNSPECIFIED,
        request_id: str = "",
    ) -> ScheduleBackfill:
        """Has the fires of a span of the past made, both ends included, in the background.

        Without an overlap policy the schedule's own holds. Raises InvalidArgumentError when the span has no fire, or
        more than 10,000.
        """
        request = pb.BackfillScheduleRequest(
            schedule_id=schedule_id, overlap_policy=overlap_policy, request_id=request_id
        )
        request.start_time.FromDatetime(start_time)
        request.end_time.FromDatetime(end_time)
        return await self._connection.call(self._stub.BackfillSchedule, request)

    async def get_backfill(self, backfill_id: str) -> ScheduleBackfill:
        """Returns a backfill. Raises NotFoundError with BACKFILL_NOT_FOUND."""
        request = pb.GetScheduleBackfillRequest(backfill_id=backfill_id)
        return await self._connection.call(self._stub.GetScheduleBackfill, request)

    async def backfills(self, schedule_id: str, *, page_size: int = 0) -> AsyncIterator[ScheduleBackfill]:
        """Yields the backfills of a schedule, the newest first."""
        request = pb.ListScheduleBackfillsRequest(schedule_id=schedule_id, page_size=page_size)
        while True:
            page = await self._connection.call(self._stub.ListScheduleBackfills, request)
            for backfill in page.backfills:
                yield backfill
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel_backfill(self, backfill_id: str, *, request_id: str = "") -> ScheduleBackfill:
        """Keeps a backfill from making further fires; its runs go on."""
        request = pb.CancelScheduleBackfillRequest(backfill_id=backfill_id, request_id=request_id)
        return await self._connection.call(self._stub.CancelScheduleBackfill, request)
