"""The buckets of a login: what they let through, and what a success gives back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.domain.throttle import (
    ACCOUNT,
    ADDRESS,
    KNOWN_ADDRESS_FOR,
    PAIR,
    Bucket,
    LoginBuckets,
    Rule,
    give_back,
    take,
)

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULE = Rule(burst=3, interval=timedelta(seconds=10))


def empty() -> LoginBuckets:
    return LoginBuckets(Bucket(b"p"), Bucket(b"c"), Bucket(b"a"))


def test_a_burst_then_one_for_each_interval() -> None:
    state: datetime | None = None
    for _ in range(RULE.burst):
        state, wait = take(RULE, state, NOW)
        assert not wait
    assert take(RULE, state, NOW) == (state, timedelta(seconds=10))
    assert take(RULE, state, NOW + timedelta(seconds=4)) == (state, timedelta(seconds=6))
    state, wait = take(RULE, state, NOW + timedelta(seconds=10))
    assert not wait
    assert take(RULE, state, NOW + timedelta(seconds=10))[1] == timedelta(seconds=10)


@given(
    pauses=st.lists(st.integers(0, 40), max_size=60),
    rule=st.builds(Rule, st.integers(1, 8), st.integers(1, 20).map(lambda n: timedelta(seconds=n))),
)
def test_never_more_than_burst_and_rate_and_never_longer_than_told(pauses: list[int], rule: Rule) -> None:
    state: datetime | None = None
    now, let_in = NOW, []
    for pause in pauses:
        now += timedelta(seconds=pause)
        state, wait = take(rule, state, now)
        if wait:
            # Who waits as long as told gets in.
            assert not take(rule, state, now + wait)[1]
            assert wait <= rule.interval
        else:
            let_in.append(now)
    for first in range(len(let_in)):
        for last in range(first, len(let_in)):
            span = let_in[last] - let_in[first]
            assert last - first + 1 <= rule.burst + span // rule.interval


def test_giving_back_undoes_a_try() -> None:
    state, _ = take(RULE, None, NOW)
    for _ in range(100):
        state, wait = take(RULE, state, NOW)
        assert not wait
        state = give_back(RULE, state)
    assert give_back(RULE, None) is None


def test_a_refused_try_takes_from_no_bucket() -> None:
    buckets = empty()
    for _ in range(PAIR.burst):
        buckets, wait = buckets.take(NOW)
        assert not wait
    for _ in range(1000):
        refused, wait = buckets.take(NOW)
        assert refused is buckets
        assert wait == PAIR.interval


def test_a_success_frees_the_pair_and_gives_back_to_the_others() -> None:
    buckets = empty()
    for _ in range(PAIR.burst):
        buckets, _ = buckets.take(NOW)
    after = buckets.succeed(NOW)
    assert after.pair == Bucket(b"p", None, NOW)
    assert after.account.full_time == NOW + ACCOUNT.interval * (PAIR.burst - 1)
    assert after.address.full_time == NOW + ADDRESS.interval * (PAIR.burst - 1)


def test_an_account_that_strangers_have_exhausted_is_open_from_a_known_address() -> None:
    exhausted = Bucket(b"c", NOW + ACCOUNT.interval * ACCOUNT.burst)
    stranger = LoginBuckets(Bucket(b"p"), exhausted, Bucket(b"a"))
    assert stranger.take(NOW)[1] == ACCOUNT.interval
    known = LoginBuckets(Bucket(b"p", None, NOW - KNOWN_ADDRESS_FOR), exhausted, Bucket(b"a"))
    after, wait = known.take(NOW)
    assert not wait
    assert after.account == exhausted
    # It took nothing from the account, so a success gives nothing back.
    assert after.succeed(NOW).account == exhausted
    forgotten = NOW - KNOWN_ADDRESS_FOR - timedelta(seconds=1)
    assert LoginBuckets(Bucket(b"p", None, forgotten), exhausted, Bucket(b"a")).take(NOW)[1]


def test_a_known_address_is_held_to_its_own_bucket() -> None:
    buckets = LoginBuckets(Bucket(b"p", None, NOW), Bucket(b"c"), Bucket(b"a"))
    for _ in range(PAIR.burst):
        buckets, _ = buckets.take(NOW)
    assert buckets.take(NOW)[1] == PAIR.interval
    assert buckets.pair.success_time == NOW
