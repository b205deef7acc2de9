"""Page tokens: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel import paging
from services.kernel.errors import ErrorKind, ServiceError

pytestmark = pytest.mark.unit
ORGANIZATION = UUID(int=1)
LIST = paging.filter_hash("ListNotes", ORGANIZATION, {"state": "OPEN"})
keys = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=50),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.none(),
    st.uuids(),
    st.datetimes(timezones=st.just(UTC)),
)


@given(st.lists(keys, max_size=4))
def test_keys_come_back_as_they_were(sent: list[Any]) -> None:
    token = paging.encode(LIST, sent)
    if len(token) <= 2048:
        assert list(paging.decode(token, LIST, domain="test.aiagent")) == sent


@pytest.mark.parametrize(
    "other",
    [
        paging.filter_hash("ListTasks", ORGANIZATION, {"state": "OPEN"}),
        paging.filter_hash("ListNotes", uuid4(), {"state": "OPEN"}),
        paging.filter_hash("ListNotes", ORGANIZATION, {"state": "DONE"}),
        paging.filter_hash("ListNotes", ORGANIZATION, {}),
    ],
    ids=["another method", "another organization", "another filter", "no filter"],
)
def test_a_token_of_another_list_is_refused(other: bytes) -> None:
    assert refused(paging.encode(other, [1]))


@given(st.text(max_size=100))
def test_any_text_is_refused_or_read(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[[]]",
        b'[{"t":"2026-01-01T00:00:00"}]',
        b'[{"u":1}]',
        b"[{}]",
        b"1",
        b'["\\u0000"]',
        b'["\\ud800"]',
        b"[9223372036854775808]",
    ],
)
def test_a_broken_body_is_refused(body: bytes) -> None:
    from services.kernel.identity.keys import base64url_encode

    assert refused(base64url_encode(LIST + body))


def refused(token: str) -> bool:
    with pytest.raises(ServiceError) as caught:
        paging.decode(token, LIST, domain="test.aiagent")
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.INVALID_ARGUMENT, "INVALID_REQUEST")
    return [violation.field for violation in caught.value.violations] == ["page_token"]


def test_times_keep_their_microseconds() -> None:
    moment = datetime(2026, 1, 1, 1, 2, 3, 456789, tzinfo=UTC)
    assert paging.decode(paging.encode(LIST, [moment]), LIST, domain="d") == (moment,)


@pytest.mark.parametrize(("requested", "given_"), [(0, 50), (-1, 50), (7, 7), (1000, 1000), (1001, 1000)])
def test_page_sizes_are_bounded(requested: int, given_: int) -> None:
    assert paging.page_size(requested) == given_
