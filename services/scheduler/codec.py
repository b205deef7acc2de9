"""Facts about runs as serialized `aiagent.events.v1.TaskRunFact`."""

from __future__ import annotations

from uuid import UUID

from aiagent.events.v1.content_pb2 import Usage
from aiagent.events.v1.task_run_fact_pb2 import TaskRunFact
from services.scheduler.domain.runs import EndedRun

_MOST_MESSAGE_CHARACTERS = 2000


def runs_queued(event_id: UUID, organization_id: UUID, count: int) -> bytes:
    """Serializes that runs of an organization wait for a worker."""
    fact = TaskRunFact(event_id=str(event_id), organization_id=str(organization_id))
    fact.runs_queued.run_count = count
    return fact.SerializeToString()


def run_ended(event_id: UUID, run: EndedRun) -> bytes:
    """Serializes that a run is over."""
    fact = TaskRunFact(event_id=str(event_id), organization_id=str(run.organization_id))
    ended = fact.run_ended
    ended.task_run_id = str(run.run_id)
    ended.task_id = str(run.task_id)
    ended.user_id = str(run.user_id)
    ended.schedule_id = str(run.schedule_id or "")
    ended.state = run.state.value
    if run.failure is not None:
        ended.failure.reason = run.failure.reason
        ended.failure.message = run.failure.message[:_MOST_MESSAGE_CHARACTERS]
    ended.attempts = run.attempts
    ended.session_id = str(run.session_id or "")
    ended.usage.CopyFrom(
        Usage(
            input_tokens=run.usage.input_tokens,
            output_tokens=run.usage.output_tokens,
            cache_read_tokens=run.usage.cache_read_tokens,
            cache_write_tokens=run.usage.cache_write_tokens,
        )
    )
    ended.cost_usd = run.cost_usd
    if run.start_time is not None:
        ended.start_time.FromDatetime(run.start_time)
    ended.end_time.FromDatetime(run.end_time)
    return fact.SerializeToString()
