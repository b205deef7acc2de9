"""A request of millions of parts costs next to nothing: it is refused before anything walks over it."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from aiagent.scheduler.v1 import scheduler_service_pb2 as scheduler
from aiagent.session.v1 import session_service_pb2 as session
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.grpc.structures import MAX_PARTS, MAX_STRUCTURE_BYTES, oversize
from services.kernel.grpc.validation import RequestValidator

pytestmark = pytest.mark.unit
HOSTILE_PARTS = 200_000
MOST_SECONDS = 0.5
"""Of processor time; looking at every part takes several times as long."""


def texts(count: int) -> Value:
    """A list of empty texts."""
    element = Value(string_value="").SerializeToString()
    data = (b"\x0a" + bytes([len(element)]) + element) * count
    return Value(list_value=ListValue.FromString(data))


def hostile() -> Struct:
    return Struct(fields={"x": texts(HOSTILE_PARTS)})


def names() -> Struct:
    found = Struct()
    for number in range(MAX_PARTS + 1):
        found.fields[f"n{number}"].null_value = 0
    return found


def nested(count: int) -> Struct:
    """Many lists, none of them long."""
    inner = texts(9)
    return Struct(fields={"x": Value(list_value=ListValue(values=[inner] * (count // 10)))})


REQUESTS = {
    "run": (scheduler.RunTaskRequest(task_id=str(uuid4()), variables=hostile()), "variables"),
    "run, names": (scheduler.RunTaskRequest(task_id=str(uuid4()), variables=names()), "variables"),
    "run, nested": (
        scheduler.RunTaskRequest(task_id=str(uuid4()), variables=nested(HOSTILE_PARTS)),
        "variables",
    ),
    "schedule": (
        scheduler.CreateScheduleRequest(task_id=str(uuid4()), name="s", variables=hostile()),
        "variables",
    ),
    "schedule's change": (
        scheduler.UpdateScheduleRequest(schedule_id=str(uuid4()), variables=hostile()),
        "variables",
    ),
    "default": (
        scheduler.CreateTaskRequest(
            name="t", variables=[{"name": "a"}, {"name": "b", "default_value": texts(HOSTILE_PARTS)}]
        ),
        "variables[1].default_value",
    ),
    "default's change": (
        scheduler.UpdateTaskRequest(variables=[{"name": "a", "default_value": texts(HOSTILE_PARTS)}]),
        "variables[0].default_value",
    ),
    "task's schema": (
        scheduler.CreateTaskRequest(name="t", sdk_options={"output_schema": hostile()}),
        "sdk_options.output_schema",
    ),
    "session's schema": (
        session.CreateSessionRequest(sdk_options={"output_schema": hostile()}),
        "sdk_options.output_schema",
    ),
    "session's change": (
        session.UpdateSessionRequest(session_id=str(uuid4()), sdk_options={"output_schema": hostile()}),
        "sdk_options.output_schema",
    ),
    "no free-form value": (
        session.CreateSessionRequest(labels={f"l{number}": "" for number in range(MAX_PARTS + 1)}),
        "labels",
    ),
}


@pytest.mark.parametrize(("request_", "field"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_of_too_many_parts_is_refused_at_once(request_: Message, field: str) -> None:
    validator = RequestValidator("scheduler.aiagent")
    began = time.process_time()
    with pytest.raises(ServiceError) as refused:
        validator.check(request_)
    took = time.process_time() - began
    (violation,) = refused.value.violations
    assert (refused.value.kind, refused.value.reason) == (ErrorKind.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert (violation.field, violation.reason) == (field, "TOO_LARGE")
    assert str(MAX_PARTS) in violation.description
    assert took < MOST_SECONDS


def test_as_many_parts_as_may_be_are_taken() -> None:
    request = scheduler.RunTaskRequest(variables=Struct(fields={"x": texts(MAX_PARTS - 1)}))
    assert oversize(request) is None
    request.variables.fields["x"].list_value.values.add()
    found = oversize(request)
    assert found is not None
    assert found.field == "variables"


def test_the_bytes_of_a_free_form_value_are_bounded() -> None:
    long = Value(string_value="a" * (MAX_STRUCTURE_BYTES // 2))
    request = scheduler.CreateTaskRequest(variables=[{"name": "a", "default_value": long}] * 2)
    assert oversize(request) is None, "the bound is for each"
    request.variables[1].default_value.string_value *= 2
    found = oversize(request)
    assert found is not None
    assert (found.field, found.reason) == ("variables[1].default_value", "TOO_LARGE")
    assert str(MAX_STRUCTURE_BYTES) in found.description


def test_a_prompt_is_no_free_form_value() -> None:
    assert oversize(session.SendMessageRequest(message="a" * (2 * MAX_STRUCTURE_BYTES))) is None
