"""Logging in: names in any case, what is told to whom, and how often one may fail."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import grpc
import jwt
import pytest

from aiagent.auth.v1 import auth_service_pb2 as pb
from services.auth.domain.throttle import ACCOUNT, ADDRESS, PAIR
from services.kernel.testing import FakeClock
from tests.integration.auth.harness import (
    PASSWORD,
    Auth,
    Databases,
    bearer,
    from_address,
    reason,
    refusal,
    running_auth,
    together,
)

pytestmark = pytest.mark.integration
INVALID = "UNAUTHENTICATED CREDENTIALS_INVALID"
THROTTLED = "RESOURCE_EXHAUSTED LOGIN_THROTTLED"


def login(password: str = PASSWORD, **name: str) -> pb.LoginRequest:
    return pb.LoginRequest(password=password, **name)


async def test_by_email_and_by_username_in_any_case(auth: Auth) -> None:
    request = await auth.register()
    for name in (
        {"email": request.email},
        {"email": request.email.upper()},
        {"username": request.username},
        {"username": request.username.upper()},
        {"username": request.email.title()},
    ):
        response = await auth.stub.Login(login(**name))
        assert (response.token_type, response.expires_in, response.refresh_expires_in) == (
            "bearer",
            3600,
            604800,
        )


async def test_claims_and_key_set(auth: Auth) -> None:
    request = await auth.register()
    user = await auth.stub.GetMe(pb.GetMeRequest(), metadata=bearer((await auth.login(request)).access_token))
    token = (await auth.login(request)).access_token
    keys = (await auth.stub.GetJwks(pb.GetJwksRequest())).keys
    (key,) = [key for key in keys if key.kid == jwt.get_unverified_header(token)["kid"]]
    assert (key.kty, key.crv, key.alg, key.use) == ("OKP", "Ed25519", "EdDSA", "sig")
    public = jwt.PyJWK({"kty": key.kty, "crv": key.crv, "x": key.x, "alg": key.alg})
    claims = jwt.decode(token, public, algorithms=["EdDSA"], audience="aiagent-api", issuer="aiagent")
    assert (claims["sub"], claims["org"], claims["email"], claims["role"]) == (
        user.id,
        user.organization_id,
        request.email,
        "user",
    )
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["jti"]


@pytest.mark.parametrize("password", ["wrong password", "x" * 73, PASSWORD + " "])
async def test_a_wrong_password_is_no_reason_to_tell_more(auth: Auth, password: str) -> None:
    request = await auth.register()
    assert await reason(auth.stub.Login(login(password, email=request.email))) == INVALID
    assert await reason(auth.stub.Login(login(password, email="nobody@example.org"))) == INVALID


@pytest.mark.parametrize("names", [{}, {"email": "a@example.org", "username": "a"}])
async def test_one_name_is_needed(auth: Auth, names: dict[str, str]) -> None:
    assert await reason(auth.stub.Login(login(**names))) == "INVALID_ARGUMENT INVALID_REQUEST"


async def test_a_deactivated_account_is_told_so_only_with_its_password(auth: Auth) -> None:
    request = await auth.register()
    tokens = await auth.login(request)
    await auth.sql("UPDATE auth.users SET deactivate_time = now() WHERE email = $1", request.email)
    assert await reason(auth.login(request)) == "UNAUTHENTICATED ACCOUNT_INACTIVE"
    assert await reason(auth.stub.Login(login("wrong", email=request.email))) == INVALID
    refresh = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
    assert await reason(auth.stub.RefreshToken(refresh)) == "UNAUTHENTICATED ACCOUNT_INACTIVE"
    # Nothing was used up: once active again, the token is good.
    await auth.sql("UPDATE auth.users SET deactivate_time = NULL WHERE email = $1", request.email)
    assert (await auth.stub.RefreshToken(refresh)).access_token


async def test_a_hash_of_another_cost_is_replaced(
    auth: Auth, auth_databases: Databases, tmp_path: Path
) -> None:
    request = await auth.register()
    async with running_auth(
        auth_databases,
        tmp_path,
        database=auth.database,
        auth_bcrypt_rounds=5,
        auth_encryption_key=auth.settings.auth_encryption_key,
    ) as dearer:
        await dearer.login(request)
    (row,) = await auth.sql("SELECT password_hash FROM auth.users WHERE email = $1", request.email)
    assert row["password_hash"].startswith("$2b$05$")
    await auth.login(request)


async def test_an_unknown_account_costs_what_a_known_one_does(
    auth_databases: Databases, tmp_path: Path
) -> None:
    async with running_auth(auth_databases, tmp_path, auth_bcrypt_rounds=10) as auth:
        known = (await auth.register()).email

        async def seconds(email: str, password: str, tries: int = 7) -> float:
            taken = []
            for number in range(tries):
                started = time.perf_counter()
                await refusal(
                    auth.stub.Login(login(password, email=email), metadata=from_address(f"192.0.2.{number}"))
                )
                taken.append(time.perf_counter() - started)
            return statistics.median(taken)

        times = [
            await seconds(known, "wrong password"),
            await seconds("nobody@example.org", "wrong password"),
            await seconds(known, "x" * 100),
            await seconds("nobody@example.org", "x" * 100),
        ]
        # A hash at this cost takes some 60 ms; without one a call takes 5.
        assert min(times) > 0.6 * max(times), times


async def test_the_loop_is_free_while_passwords_are_hashed(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(auth_databases, tmp_path, auth_bcrypt_rounds=12, auth_hashing_threads=1) as auth:
        request = await auth.register()
        logins = [pb.LoginRequest(email=request.email, password="wrong") for _ in range(3)]
        hashing = [auth.stub.Login(each) for each in logins]
        worst = 0.0
        while not all(call.done() for call in hashing):
            started = time.perf_counter()
            await auth.stub.GetJwks(pb.GetJwksRequest())
            worst = max(worst, time.perf_counter() - started)
        assert await together(*hashing)
        # Three hashes in one thread take about 700 ms; one on the loop would take 200.
        assert worst < 0.15


async def test_too_many_passwords_at_once_are_refused(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(
        auth_databases, tmp_path, auth_bcrypt_rounds=10, auth_hashing_threads=1, auth_hashing_waiting=0
    ) as auth:
        request = await auth.register()
        results = await together(*(auth.login(request) for _ in range(12)))
        refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
        assert refused
        assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
        error = await refusal(_raise(refused[0]))
        assert (error.reason, error.domain) == ("OVERLOADED", "auth.aiagent")
        assert error.retry_after_seconds
        await auth.login(request)


async def _raise(error: grpc.aio.AioRpcError) -> pb.LoginResponse:
    raise error


class TestThrottle:
    """With a clock that stands still: every try counts."""

    async def test_a_pair_of_account_and_address_is_tight(
        self, auth_databases: Databases, tmp_path: Path
    ) -> None:
        clock = FakeClock()
        async with running_auth(auth_databases, tmp_path, clock=clock) as auth:
            victim = await auth.register()
            wrong = login("wrong", email=victim.email)
            here = from_address("192.0.2.1")
            for _ in range(PAIR.burst):
                assert await reason(auth.stub.Login(wrong, metadata=here)) == INVALID
            error = await refusal(auth.stub.Login(wrong, metadata=here))
            assert error.reason == "LOGIN_THROTTLED"
            assert error.retry_after_seconds == pytest.approx(PAIR.interval.total_seconds())
            # The right password does not help, nor does the account's other name.
            assert await reason(auth.login(victim, metadata=here)) == THROTTLED
            by_name = login("wrong", username=victim.username.upper())
            assert await reason(auth.stub.Login(by_name, metadata=here)) == THROTTLED
            # Others are not held up, nor is the victim elsewhere.
            other = await auth.register()
            await auth.login(other, metadata=here)
            await auth.login(victim, metadata=from_address("192.0.2.2"))
            await clock.advance(PAIR.interval.total_seconds())
            await auth.login(victim, metadata=here)
            # A success begins anew.
            for _ in range(PAIR.burst):
                assert await reason(auth.stub.Login(wrong, metadata=here)) == INVALID

    async def test_parallel_tries_count_too(self, auth_databases: Databases, tmp_path: Path) -> None:
        async with running_auth(auth_databases, tmp_path, clock=FakeClock()) as auth:
            victim = await auth.register()
            wrong = login("wrong", email=victim.email)
            here = from_address("192.0.2.1")
            results = await together(*(auth.stub.Login(wrong, metadata=here) for _ in range(40)))
            codes = [error.code() for error in results if isinstance(error, grpc.aio.AioRpcError)]
            assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == PAIR.burst
            assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 40 - PAIR.burst

    async def test_parallel_right_logins_are_not_throttled(
        self, auth_databases: Databases, tmp_path: Path
    ) -> None:
        async with running_auth(auth_databases, tmp_path, clock=FakeClock()) as auth:
            request = await auth.register()
            await auth.login(request)
            results = await together(*(auth.login(request) for _ in range(40)))
            assert all(isinstance(result, pb.LoginResponse) for result in results)

    async def test_strangers_cannot_lock_a_person_out(
        self, auth_databases: Databases, tmp_path: Path
    ) -> None:
        clock = FakeClock()
        async with running_auth(auth_databases, tmp_path, clock=clock) as auth:
            victim = await auth.register()
            home = from_address("192.0.2.1")
            await auth.login(victim, metadata=home)
            wrong = login("wrong", email=victim.email)
            outcomes = [
                await reason(auth.stub.Login(wrong, metadata=from_address(f"198.51.100.{number}")))
                for number in range(ACCOUNT.burst + 10)
            ]
            assert outcomes.count(INVALID) == ACCOUNT.burst
            assert outcomes[-1] == THROTTLED
            # From where they logged in before, they still can; from a new place after a while.
            await auth.login(victim, metadata=home)
            new = from_address("192.0.2.200")
            error = await refusal(auth.login(victim, metadata=new))
            assert error.reason == "LOGIN_THROTTLED"
            assert error.retry_after_seconds is not None
            await clock.advance(error.retry_after_seconds)
            await auth.login(victim, metadata=new)

    async def test_one_address_cannot_try_everybody(self, auth_databases: Databases, tmp_path: Path) -> None:
        async with running_auth(auth_databases, tmp_path, clock=FakeClock()) as auth:
            # The addresses of one IPv6 network count as one.
            outcomes = [
                await reason(
                    auth.stub.Login(
                        login("wrong", email=f"nobody{number}@example.org"),
                        metadata=from_address(f"2001:db8:1:2::{number:x}"),
                    )
                )
                for number in range(ADDRESS.burst + 1)
            ]
            assert outcomes.count(INVALID) == ADDRESS.burst
            assert outcomes[-1] == THROTTLED

    async def test_a_client_cannot_choose_its_address(
        self, auth_databases: Databases, tmp_path: Path
    ) -> None:
        async with running_auth(auth_databases, tmp_path, clock=FakeClock()) as auth:
            victim = await auth.register()
            wrong = login("wrong", email=victim.email)
            outcomes = [
                await reason(
                    auth.stub.Login(wrong, metadata=(("x-forwarded-for", f"203.0.113.{number}, 192.0.2.1"),))
                )
                for number in range(PAIR.burst + 1)
            ]
            assert outcomes[-1] == THROTTLED

    async def test_unknown_names_are_throttled_alike(self, auth_databases: Databases, tmp_path: Path) -> None:
        async with running_auth(auth_databases, tmp_path, clock=FakeClock()) as auth:
            wrong = login("wrong", email="nobody@example.org")
            outcomes = [await reason(auth.stub.Login(wrong)) for _ in range(PAIR.burst + 1)]
            assert outcomes == [INVALID] * PAIR.burst + [THROTTLED]
