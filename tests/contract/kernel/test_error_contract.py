"""Every failure arrives as google.rpc.Status with ErrorInfo, and nothing internal arrives at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from services.kernel.errors import ErrorKind, FieldViolation, ServiceError
from services.kernel.grpc import error_from_rpc
from services.kernel.testing import AccessTokens, a_caller, running_server
from tests.integration.kernel.servicers import POLICIES, SESSION_ID, Sessions

pytestmark = pytest.mark.contract
GET = pb.GetSessionRequest(session_id=SESSION_ID)


@pytest.fixture
async def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
async def call(sessions: Sessions) -> AsyncIterator[Any]:
    """Calls GetSession as a user and returns the error it ends with."""
    tokens = AccessTokens()
    metadata = tokens.metadata(a_caller())
    async with running_server(register=[sessions.register], policies=POLICIES, users=tokens.verifier) as (
        _,
        channel,
    ):
        stub = SessionServiceStub(channel)

        async def run(request: Any = GET, extra: tuple[tuple[str, str], ...] = ()) -> grpc.aio.AioRpcError:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetSession(request, metadata=(*metadata, *extra))
            return caught.value

        yield run


def failing(error: Exception) -> Any:
    async def behave(_request: Any, _context: Any) -> None:
        raise error

    return behave


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    found: dict[str, Any] = {"message": status.message, "x-request-id": trailers.get("x-request-id")}
    for detail in status.details:
        name = detail.type_url.rsplit(".", 1)[1]
        message = getattr(error_details_pb2, name)()
        detail.Unpack(message)
        found[name] = message
    return found


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if kind is not ErrorKind.INTERNAL])
async def test_every_kind_arrives_with_its_code_and_reason(
    sessions: Sessions, call: Any, kind: ErrorKind
) -> None:
    sessions.behave = failing(
        ServiceError(
            kind, reason="SOME_REASON", domain="session.aiagent", message="so it is", metadata={"a": "b"}
        )
    )
    error = await call(extra=(("x-request-id", "request-1"),))
    assert error.code().name == kind.value
    assert error.details() == "so it is"
    found = details(error)
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("SOME_REASON", "session.aiagent")
    assert dict(found["ErrorInfo"].metadata) == {"a": "b", "request_id": "request-1"}
    assert found["RequestInfo"].request_id == "request-1"
    assert found["x-request-id"] == "request-1"


async def test_violations_and_retry_arrive_and_are_read_back(sessions: Sessions, call: Any) -> None:
    sent = ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        reason="TOO_MUCH",
        domain="session.aiagent",
        message="too much",
        violations=(FieldViolation("a.b[2]", "too long", "TOO_LONG"),),
        retry_after_seconds=1.25,
    )
    sessions.behave = failing(sent)
    error = await call()
    assert details(error)["RetryInfo"].retry_delay.ToMilliseconds() == 1250
    read = error_from_rpc(error)
    assert (read.kind, read.reason, read.domain, read.message) == (
        sent.kind,
        sent.reason,
        sent.domain,
        sent.message,
    )
    assert (read.violations, read.retry_after_seconds) == (sent.violations, 1.25)


@pytest.mark.parametrize(
    "secret",
    [
        RuntimeError("SELECT * FROM secrets"),
        ServiceError(
            ErrorKind.INTERNAL, reason="X", domain="session.aiagent", message="SELECT * FROM secrets"
        ),
    ],
)
async def test_what_nobody_foresaw_is_generic(sessions: Sessions, call: Any, secret: Exception) -> None:
    sessions.behave = failing(secret)
    error = await call(extra=(("x-request-id", "request-2"),))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "SELECT" not in str(error.trailing_metadata()) + str(error.details())
    assert details(error)["RequestInfo"].request_id == "request-2"


@pytest.mark.parametrize("letter", ["m", "ü", "🙂", "\x00", "\ud800"])
async def test_a_huge_error_still_arrives(sessions: Sessions, call: Any, letter: str) -> None:
    sessions.behave = failing(
        ServiceError(
            ErrorKind.INVALID_ARGUMENT,
            reason="SOME_REASON",
            domain="session.aiagent",
            message=letter * 100_000,
            metadata={f"key{n}": letter * 10_000 for n in range(100)},
            violations=[FieldViolation(letter * 10_000, letter * 10_000) for _ in range(1000)],
        )
    )
    for _ in range(20):  # too large a trailer is refused at random
        error = await call()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        found = details(error)
        assert found["ErrorInfo"].reason == "SOME_REASON"
        assert found["ErrorInfo"].metadata["request_id"]
        assert len(found["BadRequest"].field_violations) >= 1


async def test_a_status_that_a_handler_chose_itself_is_left_alone(sessions: Sessions, call: Any) -> None:
    async def behave(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "own words")

    sessions.behave = behave
    error = await call()
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "own words")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.GetSessionRequest(session_id="x"), {"session_id": "STRING_UUID"}),
        (pb.GetSessionRequest(), {"session_id": "STRING_UUID_EMPTY"}),
    ],
)
async def test_a_request_that_breaks_its_contract_names_the_fields(
    call: Any, request_: Any, fields: dict[str, str]
) -> None:
    error = await call(request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = details(error)
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("INVALID_REQUEST", "test.aiagent")
    violations = found["BadRequest"].field_violations
    assert {violation.field: violation.reason for violation in violations} == fields
    assert all(violation.description for violation in violations)


async def test_the_error_of_a_dead_connection_is_read_too() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await SessionServiceStub(channel).GetSession(GET, timeout=5)
    read = error_from_rpc(caught.value)
    assert (read.kind, read.reason) == (ErrorKind.UNAVAILABLE, "RPC_UNAVAILABLE")
    assert "127.0.0.1" not in read.message
