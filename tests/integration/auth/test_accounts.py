"""Registering over the wire, and who one is."""

from __future__ import annotations

import grpc
import pytest

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1 import user_pb2
from tests.integration.auth.harness import (
    PASSWORD,
    Auth,
    a_registration,
    bearer,
    reason,
    refusal,
    together,
)

pytestmark = pytest.mark.integration


async def test_registering_makes_account_organization_and_membership(auth: Auth) -> None:
    request = a_registration(full_name="Ada Lovelace")
    user = await auth.stub.Register(request)
    assert (user.email, user.username, user.full_name) == (request.email, request.username, "Ada Lovelace")
    assert user.role == user_pb2.User.USER
    assert user.active
    assert user.create_time == user.update_time
    (row,) = await auth.sql(
        "SELECT o.name, o.personal, m.role FROM auth.memberships m JOIN auth.organizations o"
        " ON o.id = m.organization_id WHERE m.user_id = $1::uuid AND o.id = $2::uuid",
        user.id,
        user.organization_id,
    )
    assert tuple(row) == ("Ada Lovelace", True, "owner")


async def test_the_password_is_stored_as_bcrypt_only(auth: Auth) -> None:
    request = await auth.register()
    (row,) = await auth.sql("SELECT password_hash FROM auth.users WHERE email = $1", request.email)
    assert row["password_hash"].startswith("$2b$04$")
    tables = await auth.sql(
        "SELECT format('auth.%I', tablename) AS name FROM pg_tables WHERE schemaname='auth'"
    )
    for table in tables:
        found = await auth.sql(f"SELECT 1 FROM {table['name']} t WHERE t::text LIKE $1", f"%{PASSWORD}%")
        assert found == [], table["name"]


async def test_get_me_is_the_account(auth: Auth) -> None:
    request = a_registration(full_name="Grace")
    user = await auth.stub.Register(request)
    tokens = await auth.login(request)
    assert await auth.stub.GetMe(pb.GetMeRequest(), metadata=bearer(tokens.access_token)) == user


async def test_get_me_wants_a_token(auth: Auth) -> None:
    assert (await refusal(auth.stub.GetMe(pb.GetMeRequest()))).reason == "TOKEN_MISSING"
    error = await refusal(auth.stub.GetMe(pb.GetMeRequest(), metadata=bearer("x.y.z")))
    assert error.reason == "TOKEN_INVALID"


async def test_email_and_username_are_unique_in_any_case(auth: Auth) -> None:
    request = await auth.register()
    again = a_registration(email=request.email.upper())
    assert await reason(auth.stub.Register(again)) == "ALREADY_EXISTS EMAIL_TAKEN"
    again = a_registration(username=request.username.upper())
    assert await reason(auth.stub.Register(again)) == "ALREADY_EXISTS USERNAME_TAKEN"


async def test_what_was_refused_leaves_nothing(auth: Auth) -> None:
    request = await auth.register()
    before = await auth.sql("SELECT count(*) FROM auth.organizations")
    again = a_registration(username=request.username, request_id="kept")
    await reason(auth.stub.Register(again))
    assert await auth.sql("SELECT count(*) FROM auth.organizations") == before
    # The id of a call that failed is free.
    again.username = "z" + again.username
    assert (await auth.stub.Register(again)).username == again.username


async def test_of_many_at_once_one_gets_the_email(auth: Auth) -> None:
    email = a_registration().email
    results = await together(*(auth.stub.Register(a_registration(email=email)) for _ in range(12)))
    made = [result for result in results if isinstance(result, user_pb2.User)]
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert (len(made), len(refused)) == (1, 11)
    assert {error.code() for error in refused} == {grpc.StatusCode.ALREADY_EXISTS}


async def test_of_many_at_once_one_gets_the_username(auth: Auth) -> None:
    name = a_registration().username
    results = await together(
        *(auth.stub.Register(a_registration(username=name.upper() if n % 2 else name)) for n in range(8))
    )
    codes = [result.code().name for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert codes == ["ALREADY_EXISTS"] * 7


async def test_a_repeated_request_id_answers_as_the_first(auth: Auth) -> None:
    request = a_registration(request_id="7d2c", full_name="Once")
    first = await auth.stub.Register(request)
    await auth.sql("UPDATE auth.users SET full_name = 'Changed' WHERE id = $1::uuid", first.id)
    assert await auth.stub.Register(request) == first
    # Written otherwise it is the same address.
    request.email = request.email.upper()
    assert await auth.stub.Register(request) == first


async def test_the_same_request_at_once_makes_one_account(auth: Auth) -> None:
    request = a_registration(request_id="at-once")
    results = await together(*(auth.stub.Register(request) for _ in range(6)))
    assert {result.id for result in results if isinstance(result, user_pb2.User)} != set()
    assert len({getattr(result, "id", repr(result)) for result in results}) == 1


@pytest.mark.parametrize(
    "change", [{"password": "another password"}, {"username": "else"}, {"full_name": "x"}]
)
async def test_a_request_id_with_another_request_is_refused(auth: Auth, change: dict[str, str]) -> None:
    request = await auth.register(request_id="one-id")
    other = pb.RegisterRequest()
    other.CopyFrom(request)
    other.MergeFrom(pb.RegisterRequest(**change))
    error = await refusal(auth.stub.Register(other))
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert [violation.field for violation in error.violations] == ["request_id"]


async def test_two_clients_may_use_the_same_request_id(auth: Auth) -> None:
    first = await auth.stub.Register(a_registration(request_id="1"))
    second = await auth.stub.Register(a_registration(request_id="1"))
    assert first.id != second.id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "nobody"),
        ("email", ""),
        ("username", "ab"),
        ("username", "a b c"),
        ("username", "-abc"),
        ("password", "short"),
        ("password", "x" * 73),
        ("password", "é" * 37),
        ("password", "nul\0nul\0nul"),
        ("full_name", "nul\0"),
        ("full_name", "x" * 201),
        ("request_id", "has space"),
    ],
)
async def test_wrong_fields_are_named(auth: Auth, field: str, value: str) -> None:
    error = await refusal(auth.stub.Register(a_registration(**{field: value})))
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert {violation.field for violation in error.violations} == {field}


async def test_a_password_of_72_bytes_counts_to_its_last_byte(auth: Auth) -> None:
    request = await auth.register(password="p" * 72)
    await auth.login(request)
    request.password = "p" * 71 + "q"
    assert await reason(auth.login(request)) == "UNAUTHENTICATED CREDENTIALS_INVALID"
