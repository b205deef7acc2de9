"""Every reason of `ErrorReason`, as a client meets it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1 import error_reason_pb2
from services.auth.domain.throttle import PAIR
from services.kernel.testing import FakeClock
from tests.integration.auth.harness import (
    Auth,
    Databases,
    a_registration,
    from_address,
    running_auth,
    together,
)

pytestmark = pytest.mark.contract
REASONS = set(error_reason_pb2.ErrorReason.Reason.keys()) - {"REASON_UNSPECIFIED"}
HOME = from_address("192.0.2.1")


async def told(call: Any) -> tuple[str, dict[str, Message]]:
    """Returns the status and the details of a refused call, by their type's name."""
    (error,) = await together(call)
    for key, value in error.trailing_metadata() or ():  # type: ignore[union-attr]
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            details: dict[str, Message] = {}
            for packed in status.details:
                kind = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])
                details[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
            return code_pb2.Code.Name(status.code), details
    raise AssertionError(error)


async def test_each_reason_arrives(auth_databases: Databases, tmp_path: Path) -> None:
    clock = FakeClock()
    met: dict[str, tuple[str, dict[str, Message]]] = {}

    async def meet(call: Any) -> None:
        code, details = await told(call)
        info: Any = details["ErrorInfo"]
        assert info.domain == "auth.aiagent"
        assert re.fullmatch(r"[0-9a-f-]{36}|once", info.metadata["request_id"])
        met[info.reason] = (code, details)

    async with running_auth(auth_databases, tmp_path, clock=clock, auth_bcrypt_rounds=6) as auth:
        stub = auth.stub
        request = a_registration(request_id="once")
        await stub.Register(request)
        await meet(stub.Register(pb.RegisterRequest()))
        await meet(
            stub.Register(a_registration(email=request.email, request_id="once", password="not the same"))
        )
        await meet(stub.Register(a_registration(email=request.email)))
        await meet(stub.Register(a_registration(username=request.username)))
        wrong = pb.LoginRequest(email=request.email, password="wrong")
        for _ in range(PAIR.burst):
            await meet(stub.Login(wrong))
        await meet(stub.Login(wrong))
        tokens = await auth.login(request, metadata=HOME)
        used = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
        await stub.RefreshToken(used, metadata=HOME)
        await clock.advance(31)
        await meet(stub.RefreshToken(used, metadata=HOME))
        await meet(stub.RefreshToken(used, metadata=HOME))
        await auth.sql("UPDATE auth.users SET deactivate_time = now()")
        await meet(auth.login(request, metadata=HOME))
    async with running_auth(
        auth_databases, tmp_path, auth_bcrypt_rounds=10, auth_hashing_threads=1, auth_hashing_waiting=0
    ) as auth:
        results = await together(*(auth.stub.Register(a_registration()) for _ in range(4)))
        refused = [result for result in results if isinstance(result, BaseException)]

        async def again() -> None:
            raise refused[0]

        await meet(again())

    assert set(met) == REASONS
    assert {reason: code for reason, (code, _) in met.items()} == {
        "INVALID_REQUEST": "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED": "INVALID_ARGUMENT",
        "EMAIL_TAKEN": "ALREADY_EXISTS",
        "USERNAME_TAKEN": "ALREADY_EXISTS",
        "CREDENTIALS_INVALID": "UNAUTHENTICATED",
        "ACCOUNT_INACTIVE": "UNAUTHENTICATED",
        "REFRESH_TOKEN_INVALID": "UNAUTHENTICATED",
        "REFRESH_TOKEN_REUSED": "UNAUTHENTICATED",
        "LOGIN_THROTTLED": "RESOURCE_EXHAUSTED",
        "OVERLOADED": "UNAVAILABLE",
    }
    assert {reason for reason, (_, details) in met.items() if "RetryInfo" in details} == {
        "LOGIN_THROTTLED",
        "OVERLOADED",
    }
    assert {reason for reason, (_, details) in met.items() if "BadRequest" in details} == {
        "INVALID_REQUEST",
        "REQUEST_ID_REUSED",
    }


async def test_nothing_of_the_inside_is_told(auth: Auth) -> None:
    # What no rule of the contract foresees is INTERNAL with a generic text.
    await auth.sql("ALTER TABLE auth.refresh_families RENAME TO hidden")
    try:
        request = await auth.register()
        code, details = await told(auth.login(request))
    finally:
        await auth.sql("ALTER TABLE auth.hidden RENAME TO refresh_families")
    assert code == "INTERNAL"
    info: Any = details["ErrorInfo"]
    assert (info.reason, info.domain) == ("INTERNAL", "auth.aiagent")
    assert not re.search("refresh|select|insert|sqlalchemy|asyncpg", str(details), re.IGNORECASE)
