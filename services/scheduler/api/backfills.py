"""`SchedulerService`: backfills of schedules."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from aiagent.scheduler.v1 import schedule_pb2
from aiagent.scheduler.v1 import scheduler_service_pb2 as pb
from services.kernel.context import current_caller
from services.scheduler.api import backfill_mapping
from services.scheduler.api.pages import page
from services.scheduler.usecases.backfills import Backfills


class BackfillMethods:
    """The methods about backfills."""

    _backfills: Backfills

    async def BackfillSchedule(
        self, request: pb.BackfillScheduleRequest, context: Any
    ) -> schedule_pb2.ScheduleBackfill:
        """Asks for the fires of a span of the past."""
        made = await self._backfills.create(
            current_caller(), backfill_mapping.asked(request), request.request_id
        )
        return backfill_mapping.backfill(made)

    async def GetScheduleBackfill(
        self, request: pb.GetScheduleBackfillRequest, context: Any
    ) -> schedule_pb2.ScheduleBackfill:
        """Returns a backfill."""
        found = await self._backfills.get(current_caller(), UUID(request.backfill_id))
        return backfill_mapping.backfill(found)

    async def ListScheduleBackfills(
        self, request: pb.ListScheduleBackfillsRequest, context: Any
    ) -> pb.ListScheduleBackfillsResponse:
        """Lists the backfills of a schedule."""
        caller, schedule_id = current_caller(), UUID(request.schedule_id)
        backfills, token = await page(
            caller,
            ("ListScheduleBackfills", schedule_id),
            request.page_size,
            request.page_token,
            UUID,
            lambda before, limit: self._backfills.list_page(caller, schedule_id, before, limit),
            lambda row: row.id,
            backfill_mapping.backfill,
        )
        return pb.ListScheduleBackfillsResponse(backfills=backfills, next_page_token=token)

    async def CancelScheduleBackfill(
        self, request: pb.CancelScheduleBackfillRequest, context: Any
    ) -> schedule_pb2.ScheduleBackfill:
        """Keeps a backfill from making further fires."""
        found = await self._backfills.cancel(current_caller(), UUID(request.backfill_id), request.request_id)
        return backfill_mapping.backfill(found)
