"""How often a login may fail: token buckets in the form of the generic cell rate algorithm (ITU-T I.371).

A bucket is one instant, the time at which it would be full again; a try moves it on by one interval, and is refused
when that would lead further than the burst. A login takes from its buckets before the password is looked at, so that
tries at the same time count too; one that succeeds gives back what it took.

Three buckets are asked, and the first that refuses decides:

- *pair*, of an account and an address, is tight: somebody guesses this account's password from there.
- *account*, whatever the address, is loose: many addresses guess together. Whoever has logged in from an address before
  is not asked, so that strangers cannot lock a person out of the places where they work.
- *address*, whatever the account, is loose: one address tries one password on many accounts.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final


@dataclass(frozen=True, slots=True)
class Rule:
    """A bucket's size and speed.

    Args:
        burst: tries that a full bucket allows at once.
        interval: after which one more is allowed.
    """

    burst: int
    interval: timedelta


PAIR: Final = Rule(burst=10, interval=timedelta(seconds=30))
ACCOUNT: Final = Rule(burst=50, interval=timedelta(seconds=15))
ADDRESS: Final = Rule(burst=100, interval=timedelta(seconds=3))
KNOWN_ADDRESS_FOR: Final = timedelta(days=30)
"""How long an address counts as one from which the account's owner logs in."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The stored state of one bucket.

    Args:
        key: what it counts; a keyed hash, so that the table tells nobody who logs in from where.
        full_time: when it will be full again; None or the past if it is.
        success_time: of a pair: when somebody last logged in so.
    """

    key: bytes
    full_time: datetime | None = None
    success_time: datetime | None = None


def take(rule: Rule, full_time: datetime | None, now: datetime) -> tuple[datetime | None, timedelta]:
    """Takes one try from a bucket.

    Returns the bucket's new state and zero; or its old one and how long to wait.
    """
    begin = now if full_time is None else max(full_time, now)
    wait = begin - now - rule.interval * (rule.burst - 1)
    if wait > timedelta():
        return full_time, wait
    return begin + rule.interval, timedelta()


def give_back(rule: Rule, full_time: datetime | None) -> datetime | None:
    """Undoes one `take`."""
    return None if full_time is None else full_time - rule.interval


@dataclass(frozen=True, slots=True)
class LoginBuckets:
    """The buckets of one login."""

    pair: Bucket
    account: Bucket
    address: Bucket

    def known(self, now: datetime) -> bool:
        """Whether the account's owner has logged in from this address lately."""
        success = self.pair.success_time
        return success is not None and now - success <= KNOWN_ADDRESS_FOR

    def take(self, now: datetime) -> tuple[LoginBuckets, timedelta]:
        """Takes one try from every bucket; returns the new state and zero, or the old one and how long to wait.

        A refused try takes from none: who waits as told gets in.
        """
        pair, wait_pair = take(PAIR, self.pair.full_time, now)
        address, wait_address = take(ADDRESS, self.address.full_time, now)
        account, wait_account = take(ACCOUNT, self.account.full_time, now)
        if self.known(now):
            account, wait_account = self.account.full_time, timedelta()
        wait = max(wait_pair, wait_account, wait_address)
        if wait > timedelta():
            return self, wait
        return self._with(pair, account, address), wait

    def succeed(self, now: datetime) -> LoginBuckets:
        """The state after a login that `take` had let through succeeded: the pair begins anew."""
        account = self.account.full_time if self.known(now) else give_back(ACCOUNT, self.account.full_time)
        after = self._with(None, account, give_back(ADDRESS, self.address.full_time))
        return LoginBuckets(Bucket(after.pair.key, None, now), after.account, after.address)

    def _with(
        self, pair: datetime | None, account: datetime | None, address: datetime | None
    ) -> LoginBuckets:
        return LoginBuckets(
            Bucket(self.pair.key, pair, self.pair.success_time),
            Bucket(self.account.key, account),
            Bucket(self.address.key, address),
        )


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the network of 64 bits, within which one host picks as it likes."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
