"""What is wrong with a field is said in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from aiagent.scheduler.v1.scheduler_service_pb2 import (
    CreateTaskRequest,
    ListSchedulesRequest,
    ListTaskRunsRequest,
)
from aiagent.session.v1 import session_service_pb2
from buf.validate import validate_pb2
from services.kernel.errors import ServiceError
from services.kernel.grpc.validation import RequestValidator, description_of_pattern

pytestmark = pytest.mark.unit
DESCRIPTORS = Path(__file__).parents[3] / "protos" / "gen" / "descriptors.binpb"


def patterns(message: Message) -> Iterator[str]:
    """All values of fields named `pattern`, wherever they stand in a message."""
    for field, value in message.ListFields():
        if field.name == "pattern":
            yield value
        elif field.message_type is not None and field.message_type.full_name.startswith("buf.validate."):
            for inner in value if field.is_repeated else (value,):
                yield from patterns(inner)


def of_the_contracts() -> set[str]:
    contract = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    found: set[str] = set()
    messages = [message for file in contract.file for message in file.message_type]
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            found |= set(patterns(field.options.Extensions[validate_pb2.field]))
    return found


def test_every_pattern_of_the_contracts_has_words() -> None:
    found = of_the_contracts()
    assert len(found) > 5
    for pattern in found:
        assert description_of_pattern(pattern) is not None, pattern


def test_no_expression_is_shown() -> None:
    request = session_service_pb2.CreateSessionRequest(request_id="no spaces", sdk_options={"model": "?"})
    with pytest.raises(ServiceError) as refused:
        RequestValidator("session.aiagent").check(request)
    fields = {violation.field: violation.description for violation in refused.value.violations}
    assert fields.keys() == {"request_id", "sdk_options.model"}
    for text in fields.values():
        assert "letters" in text
        assert "[" not in text
        assert "regex" not in text


@pytest.mark.parametrize(
    ("request_", "described"),
    [
        (
            CreateTaskRequest(name="n", prompt_template="x", webhook={"url": "https://a.b", "states": [1]}),
            {"webhook.states[0]": "must be one of SUCCEEDED, FAILED, CANCELLED, TIMED_OUT"},
        ),
        (ListTaskRunsRequest(states=[0]), {"states[0]": "must not be STATE_UNSPECIFIED"}),
        (
            ListSchedulesRequest(states=[1, 77]),  # type: ignore[list-item]  # a number of a newer contract
            {"states[1]": "must be one of ACTIVE, PAUSED, ENDED"},
        ),
        (CreateTaskRequest(name="", prompt_template="a\0"), {
            "name": "must not be blank",
            "prompt_template": "must have no NUL",
        }),
    ],
)  # fmt: skip
def test_a_fault_is_said_once_and_without_numbers(request_: Message, described: dict[str, str]) -> None:
    with pytest.raises(ServiceError) as refused:
        RequestValidator("scheduler.aiagent").check(request_)
    assert [(one.field, one.description) for one in refused.value.violations] == list(described.items())
