"""Refresh tokens: rotation, the grace, reuse, logging out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiagent.auth.v1 import auth_service_pb2 as pb
from services.auth.domain.refresh import REFRESH_LIFETIME, REUSE_GRACE
from services.kernel.testing import FakeClock
from tests.integration.auth.harness import (
    Auth,
    Databases,
    bearer,
    from_address,
    reason,
    running_auth,
    together,
)

pytestmark = pytest.mark.integration
HOME = from_address("192.0.2.1", "laptop")
THIEF = from_address("198.51.100.7", "thief")
INVALID = "UNAUTHENTICATED REFRESH_TOKEN_INVALID"
REUSED = "UNAUTHENTICATED REFRESH_TOKEN_REUSED"
GRACE = REUSE_GRACE.total_seconds()


@pytest.fixture(scope="module")
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="module")
async def timed(
    auth_databases: Databases, tmp_path_factory: pytest.TempPathFactory, clock: FakeClock
) -> AsyncIterator[Auth]:
    async with running_auth(auth_databases, tmp_path_factory.mktemp("state"), clock=clock) as running:
        yield running


async def begin(auth: Auth) -> str:
    return str((await auth.login(await auth.register(), metadata=HOME)).refresh_token)


async def refresh(
    auth: Auth, token: str, metadata: tuple[tuple[str, str], ...] = HOME
) -> pb.RefreshTokenResponse:
    return await auth.stub.RefreshToken(pb.RefreshTokenRequest(refresh_token=token), metadata=metadata)


async def test_each_token_gives_another(timed: Auth) -> None:
    first = await begin(timed)
    second = await refresh(timed, first)
    third = await refresh(timed, second.refresh_token)
    assert len({first, second.refresh_token, third.refresh_token}) == 3
    assert (third.token_type, third.expires_in, third.refresh_expires_in) == ("bearer", 3600, 604800)
    await timed.stub.GetMe(pb.GetMeRequest(), metadata=bearer(third.access_token))


async def test_within_the_grace_the_same_client_gets_the_same_successor(
    timed: Auth, clock: FakeClock
) -> None:
    first = await begin(timed)
    second = await refresh(timed, first)
    await clock.advance(GRACE)
    again = await refresh(timed, first)
    assert again.refresh_token == second.refresh_token
    assert again.refresh_expires_in == 604800 - GRACE
    # The successor goes on as if nothing had happened.
    assert (await refresh(timed, again.refresh_token)).refresh_token != again.refresh_token


async def test_many_at_once_get_one_successor(timed: Auth) -> None:
    first = await begin(timed)
    results = await together(*(refresh(timed, first) for _ in range(12)))
    assert len({getattr(result, "refresh_token", repr(result)) for result in results}) == 1


async def test_after_the_grace_reuse_ends_the_family(timed: Auth, clock: FakeClock) -> None:
    first = await begin(timed)
    second = await refresh(timed, first)
    await clock.advance(GRACE + 1)
    assert await reason(refresh(timed, first)) == REUSED
    assert await reason(refresh(timed, second.refresh_token)) == INVALID
    assert await reason(refresh(timed, first)) == INVALID


async def test_another_client_has_no_grace(timed: Auth) -> None:
    first = await begin(timed)
    second = await refresh(timed, first)
    assert await reason(refresh(timed, first, THIEF)) == REUSED
    assert await reason(refresh(timed, second.refresh_token)) == INVALID


async def test_the_rightful_client_finds_out_about_a_thief(timed: Auth) -> None:
    first = await begin(timed)
    stolen = await refresh(timed, first, THIEF)
    assert await reason(refresh(timed, first, HOME)) == REUSED
    assert await reason(refresh(timed, stolen.refresh_token, THIEF)) == INVALID


async def test_a_client_may_move_between_uses(timed: Auth) -> None:
    second = await refresh(timed, await begin(timed), HOME)
    assert await refresh(timed, second.refresh_token, from_address("192.0.2.77", "laptop"))


async def test_families_do_not_touch_each_other(timed: Auth, clock: FakeClock) -> None:
    request = await timed.register()
    one = (await timed.login(request, metadata=HOME)).refresh_token
    other = (await timed.login(request, metadata=HOME)).refresh_token
    await refresh(timed, one)
    await clock.advance(GRACE + 1)
    assert await reason(refresh(timed, one)) == REUSED
    assert await refresh(timed, other)


async def test_a_token_expires(timed: Auth, clock: FakeClock) -> None:
    token = await begin(timed)
    await clock.advance(REFRESH_LIFETIME.total_seconds())
    assert await reason(refresh(timed, token)) == INVALID


@pytest.mark.parametrize("token", ["x", "aart_" + "A" * 43, "ü" * 512])
async def test_unknown_tokens_are_invalid(timed: Auth, token: str) -> None:
    assert await reason(refresh(timed, token)) == INVALID


async def test_logging_out_ends_the_family_and_may_be_repeated(timed: Auth) -> None:
    first = await begin(timed)
    second = await refresh(timed, first)
    for token in (first, second.refresh_token, "unknown"):
        await timed.stub.Logout(pb.LogoutRequest(refresh_token=token))
    assert await reason(refresh(timed, second.refresh_token)) == INVALID
    assert await reason(refresh(timed, first)) == INVALID


async def test_a_refresh_and_a_logout_at_once_leave_nobody_logged_in(timed: Auth) -> None:
    for _ in range(5):
        token = await begin(timed)
        refreshed, _ = await together(
            refresh(timed, token), timed.stub.Logout(pb.LogoutRequest(refresh_token=token))
        )
        if isinstance(refreshed, pb.RefreshTokenResponse):
            assert await reason(refresh(timed, refreshed.refresh_token)) == INVALID


async def test_no_token_is_stored(timed: Auth) -> None:
    first = await begin(timed)
    second = (await refresh(timed, first)).refresh_token
    rows = await timed.sql("SELECT t::text AS text, token_hash FROM auth.refresh_tokens t")
    for token in (first, second):
        assert all(token not in row["text"] and token.encode() not in row["token_hash"] for row in rows)


async def test_another_replica_knows_the_same_successor(
    timed: Auth, auth_databases: Databases, clock: FakeClock, tmp_path: Path
) -> None:
    first = await begin(timed)
    second = await refresh(timed, first)
    async with running_auth(
        auth_databases,
        tmp_path,
        database=timed.database,
        clock=clock,
        auth_encryption_key=timed.settings.auth_encryption_key,
    ) as replica:
        assert (await refresh(replica, first)).refresh_token == second.refresh_token
