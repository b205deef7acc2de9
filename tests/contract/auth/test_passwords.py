"""The hashing port, held to passlib's and bcrypt's real behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from services.auth.gateways.passwords import BcryptHasher
from services.kernel.errors import ServiceError

pytestmark = pytest.mark.contract


@pytest.fixture
def hasher() -> Iterator[BcryptHasher]:
    made = BcryptHasher(rounds=4, threads=2, waiting=10)
    yield made
    made.close()


@pytest.mark.parametrize("password", ["correct horse", "p" * 72, "é" * 36, " ", "🦊" * 18])
async def test_a_hash_is_its_passwords_only(hasher: BcryptHasher, password: str) -> None:
    made = await hasher.hash(password)
    assert made.startswith("$2b$04$")
    assert made != await hasher.hash(password)
    assert await hasher.verify(password, made)
    assert not await hasher.verify(password[:-1] + "x", made)
    assert not await hasher.verify(password, None)


async def test_what_bcrypt_would_not_read_matches_nothing(hasher: BcryptHasher) -> None:
    made = await hasher.hash("p" * 72)
    assert not await hasher.verify("p" * 73, made)
    assert not await hasher.verify("é" * 40, made)


async def test_cost_tells_what_is_outdated(hasher: BcryptHasher) -> None:
    dearer = BcryptHasher(rounds=5, threads=1, waiting=0)
    made = await hasher.hash("x")
    assert not hasher.is_outdated(made)
    assert dearer.is_outdated(made)
    assert await dearer.verify("x", made)
    dearer.close()


async def test_beyond_what_may_wait_is_refused() -> None:
    hasher = BcryptHasher(rounds=8, threads=1, waiting=1)
    results = await asyncio.gather(*(hasher.hash("x") for _ in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, ServiceError)]
    assert [error.reason for error in refused] == ["OVERLOADED"] * 3
    hasher.close()
