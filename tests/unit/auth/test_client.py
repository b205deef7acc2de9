"""Where a call comes from: what the proxy says, never what the client says."""

from __future__ import annotations

from typing import Any, cast

import pytest

from services.auth.api.client import client_of
from services.auth.domain.throttle import network_of

pytestmark = pytest.mark.unit


class Call:
    """The part of a servicer context that is read."""

    def __init__(self, peer: str, *metadata: tuple[str, str | bytes]) -> None:
        self._peer = peer
        self._metadata = metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def address(peer: str, *forwarded: str, hops: int = 1) -> str:
    call = Call(peer, *(("x-forwarded-for", value) for value in forwarded))
    return client_of(cast(Any, call), hops).address


@pytest.mark.parametrize(
    ("forwarded", "hops", "expected"),
    [
        ((), 1, "10.0.0.1"),
        (("192.0.2.1",), 1, "192.0.2.1"),
        (("6.6.6.6, 192.0.2.1",), 1, "192.0.2.1"),
        (("6.6.6.6", "192.0.2.1"), 1, "192.0.2.1"),
        (("6.6.6.6,192.0.2.1, 10.9.9.9",), 2, "192.0.2.1"),
        (("192.0.2.1",), 0, "10.0.0.1"),
        # Fewer entries than proxies: somebody came past them.
        (("192.0.2.1",), 2, "10.0.0.1"),
        (("192.0.2.1, nonsense",), 1, "10.0.0.1"),
        (("2001:DB8::1",), 1, "2001:db8::1"),
    ],
)
def test_the_trusted_hop_counts(forwarded: tuple[str, ...], hops: int, expected: str) -> None:
    assert address("ipv4:10.0.0.1:4242", *forwarded, hops=hops) == expected


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("ipv6:%5B::1%5D:4242", "::1"), ("ipv6:[2001:db8::1]:1", "2001:db8::1"), ("unix:/run/x", ""), ("", "")],
)
def test_the_peer_otherwise(peer: str, expected: str) -> None:
    assert address(peer) == expected


def test_a_user_agent_is_bounded() -> None:
    call = Call("", ("user-agent", "x" * 10_000), ("some-bin", b"\xff"))
    assert client_of(cast(Any, call), 1).user_agent == "x" * 512


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same
