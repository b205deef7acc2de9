"""Facts about runs as messages of `aiagent.events.v1`. A leaf, for the rooms that touch protobuf."""

from __future__ import annotations

from uuid import UUID

from google.protobuf.message import DecodeError

from aiagent.events.v1 import task_run_fact_pb2
from services.scheduler.domain.runs import EndedRun

_MOST_REASON_CHARACTERS = 4096


def queued(event_id: UUID, organization_id: UUID, count: int) -> bytes:
    """Serializes that runs of an organization wait for a worker."""
    message = _fact(event_id, organization_id)
    message.runs_queued.run_count = count
    return message.SerializeToString()


def ended(event_id: UUID, run: EndedRun) -> bytes:
    """Serializes the end of a run; the text of its failure is cut where it is long."""
    message = _fact(event_id, run.organization_id)
    fact = message.run_ended
    fact.task_run_id = str(run.run_id)
    fact.task_id = str(run.task_id)
    fact.user_id = str(run.user_id)
    fact.schedule_id = _id(run.schedule_id)
    fact.state = run.state.value
    fact.attempt_count = run.attempts
    fact.session_id = _id(run.session_id)
    fact.usage.input_tokens = run.usage.input_tokens
    fact.usage.output_tokens = run.usage.output_tokens
    fact.usage.cache_read_tokens = run.usage.cache_read_tokens
    fact.usage.cache_write_tokens = run.usage.cache_write_tokens
    fact.cost_usd = run.cost_usd
    fact.end_time.FromDatetime(run.end_time)
    if run.failure is not None:
        fact.failure.reason = run.failure.reason
        fact.failure.message = run.failure.message[:_MOST_REASON_CHARACTERS]
    if run.start_time is not None:
        fact.start_time.FromDatetime(run.start_time)
    return message.SerializeToString()


def kind_of(payload: bytes) -> str | None:
    """Returns which kind of fact a payload is, by the contract's name; None if it is none that is known here."""
    try:
        kind: str | None = task_run_fact_pb2.TaskRunFact.FromString(payload).WhichOneof("kind")
    except DecodeError:
        return None
    return kind


def _fact(event_id: UUID, organization_id: UUID) -> task_run_fact_pb2.TaskRunFact:
    return task_run_fact_pb2.TaskRunFact(event_id=str(event_id), organization_id=str(organization_id))


def _id(value: UUID | None) -> str:
    return str(value) if value is not None else ""
