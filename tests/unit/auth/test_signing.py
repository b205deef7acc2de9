"""Which key signs when, and how long it is published."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.auth.domain.refresh import ACCESS_LIFETIME
from services.auth.domain.signing import SigningKey, is_published, signing_key

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHANGE = NOW + timedelta(minutes=10)
OLD = SigningKey("old", b"", b"", NOW - timedelta(days=90), CHANGE)
NEW = SigningKey("new", b"", b"", CHANGE, None)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("now", "kid"), [(NOW, "old"), (CHANGE - TICK, "old"), (CHANGE, "new"), (CHANGE + TICK, "new")]
)
def test_one_key_signs_at_any_time(now: datetime, kid: str) -> None:
    for keys in ([OLD, NEW], [NEW, OLD]):
        found = signing_key(keys, now)
        assert found is not None
        assert found.kid == kid


def test_no_key_signs_before_the_first() -> None:
    assert signing_key([NEW], NOW) is None
    assert signing_key([], NOW) is None


def test_a_key_is_published_before_it_signs_and_until_its_last_token_is_over() -> None:
    assert is_published(NEW, NOW)
    assert is_published(OLD, CHANGE + ACCESS_LIFETIME)
    assert not is_published(OLD, CHANGE + ACCESS_LIFETIME + timedelta(minutes=1))
