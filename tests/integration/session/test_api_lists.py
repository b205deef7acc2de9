"""Pages and filters of every list: no gap, no repetition, and a token is good for its own list only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from aiagent.session.v1 import permission_service_pb2, session_pb2
from aiagent.session.v1 import session_service_pb2 as pb

from .scripted_executor import Attempt
from .serving import Client, Serving, field_of

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Listing:
    """One list method."""

    method: str
    request: Callable[..., Any]
    items: str
    key: Callable[[Any], Any]
    service: str = "SessionService"
    of_a_session: bool = True
    filters: tuple[dict[str, Any], ...] = ()

    async def page(self, client: Client, session_id: str, **fields: Any) -> Any:
        if self.of_a_session:
            fields["session_id"] = session_id
        return await getattr(client.stub(self.service), self.method)(self.request(**fields))

    async def walk(self, client: Client, session_id: str, size: int, **fields: Any) -> list[Any]:
        found, token = [], ""
        while True:
            page = await self.page(client, session_id, page_size=size, page_token=token, **fields)
            items = list(getattr(page, self.items))
            assert len(items) <= size
            found += items
            if not page.next_page_token:
                return found
            assert items, "a page that is not the last one holds something"
            token = page.next_page_token


LISTINGS = [
    Listing(
        "ListSessions", pb.ListSessionsRequest, "sessions", lambda item: item.id, of_a_session=False,
        filters=({"states": [session_pb2.Session.ACTIVE]}, {"name_contains": "list"}),
    ),
    Listing(
        "ListTurns", pb.ListTurnsRequest, "turns", lambda item: item.number,
        filters=({"states": [session_pb2.Turn.SUCCEEDED]},),
    ),
    Listing(
        "ListMessages", pb.ListMessagesRequest, "messages", lambda item: item.id,
        filters=({"roles": [session_pb2.Message.USER]},),
    ),
    Listing(
        "ListToolCalls", pb.ListToolCallsRequest, "tool_calls", lambda item: item.id,
        filters=({"tool_name": "Bash"},),
    ),
    Listing("ListEvents", pb.ListEventsRequest, "events", lambda item: item.sequence, filters=({"after_sequence": 3},)),
    Listing(
        "ListPermissionRequests", permission_service_pb2.ListPermissionRequestsRequest, "permission_requests",
        lambda item: item.id, service="PermissionService",
        filters=({"states": [session_pb2.PermissionRequest.DENIED]},),
    ),
]  # fmt: skip
each_list = pytest.mark.parametrize("listing", LISTINGS, ids=lambda listing: listing.method)


@dataclass
class Filled:
    """Somebody with several sessions, and one of them full of everything."""

    client: Client
    session_id: str


@pytest.fixture(scope="module")
async def filled(api: Serving) -> Filled:
    async def five_calls(attempt: Attempt) -> None:
        attempt.started()
        for number in range(5):
            call = f"call-{number}-{attempt.request.fence.turn_id}"
            attempt.ask(call, "Bash" if number % 2 else "Read", {"number": number})
            decision = await attempt.decided(call)
            attempt.result(call, "done", is_error=not decision.allow)
        attempt.end("SUCCEEDED")

    api.plays["five"] = five_calls
    client = api.client()
    options = {"permission_mode": "DONT_ASK", "allowed_tools": ["Read"]}
    session = await client.session(name="a list", sdk_options=options)
    for number in range(4):
        await client.session(name=f"other {number}")
    await client.talk(session.id, "five")
    for _ in range(5):
        await client.talk(session.id)
    asking = await client.session(name="asking list")
    for _ in range(3):
        request = await client.question(asking.id)
        await client.permissions.ResolvePermission(
            permission_service_pb2.ResolvePermissionRequest(
                session_id=asking.id, permission_request_id=request.id, decision="DENY"
            )
        )
        await client.wait(session_pb2.Turn(id=request.turn_id, session_id=asking.id))
    return Filled(client, session.id)


def session_of(filled: Filled, listing: Listing, asking: str) -> str:
    return asking if listing.method == "ListPermissionRequests" else filled.session_id


@pytest.fixture(scope="module")
async def asking(filled: Filled) -> str:
    """The session in which questions were asked."""
    listed = await filled.client.sessions.ListSessions(pb.ListSessionsRequest(name_contains="asking"))
    return str(listed.sessions[0].id)


@each_list
@pytest.mark.parametrize("size", [1, 2, 3])
async def test_pages_join_without_gap_or_repetition(filled: Filled, asking: str, listing: Listing, size: int):
    session_id = session_of(filled, listing, asking)
    whole = await listing.walk(filled.client, session_id, 1000)
    assert len(whole) >= 3
    assert await listing.walk(filled.client, session_id, size) == whole
    assert len({listing.key(item) for item in whole}) == len(whole)


@each_list
async def test_filters_find_a_part_in_the_same_order(filled: Filled, asking: str, listing: Listing):
    session_id = session_of(filled, listing, asking)
    whole = await listing.walk(filled.client, session_id, 1000)
    for filters in listing.filters:
        part = await listing.walk(filled.client, session_id, 2, **filters)
        assert part
        positions = [whole.index(item) for item in part]
        assert positions == sorted(positions)


@each_list
@pytest.mark.parametrize("size", [-1, 1001])
async def test_sizes_out_of_range_are_named(filled: Filled, asking: str, listing: Listing, size: int):
    session_id = session_of(filled, listing, asking)
    assert await field_of(listing.page(filled.client, session_id, page_size=size)) == "page_size"


@each_list
async def test_a_token_is_good_for_its_own_list_only(
    api: Serving, filled: Filled, asking: str, listing: Listing
):
    session_id = session_of(filled, listing, asking)
    page = await listing.page(filled.client, session_id, page_size=1)
    token = page.next_page_token
    assert token
    position = len(token) // 2
    broken = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
    for bad in ("x", "🦊", token[:-4], broken, token + "A"):
        assert await field_of(listing.page(filled.client, session_id, page_token=bad)) == "page_token", bad
    for filters in listing.filters:
        call = listing.page(filled.client, session_id, page_token=token, **filters)
        assert await field_of(call) == "page_token", "another filter is another list"
    for other in LISTINGS:
        if other.method != listing.method:
            where = session_of(filled, other, asking)
            assert await field_of(other.page(filled.client, where, page_token=token)) == "page_token"
    if listing.of_a_session:
        elsewhere = await filled.client.session()
        assert await field_of(listing.page(filled.client, elsewhere.id, page_token=token)) == "page_token"
    else:
        stranger = api.client()
        assert await field_of(listing.page(stranger, "", page_token=token)) == "page_token"


@each_list
async def test_what_comes_meanwhile_makes_no_page_repeat(
    api: Serving, filled: Filled, asking: str, listing: Listing
):
    session_id = session_of(filled, listing, asking)
    first = await listing.page(filled.client, session_id, page_size=2)
    if listing.of_a_session:
        await filled.client.talk(session_id)
    else:
        await filled.client.session(name="newer")
    rest = []
    token = first.next_page_token
    while token:
        page = await listing.page(filled.client, session_id, page_size=2, page_token=token)
        rest += list(getattr(page, listing.items))
        token = page.next_page_token
    keys = [listing.key(item) for item in [*getattr(first, listing.items), *rest]]
    assert len(set(keys)) == len(keys)


async def test_nobody_has_anything_at_first(api: Serving):
    stranger = api.client()
    session = await stranger.session()
    for listing in LISTINGS:
        page = await listing.page(stranger, session.id)
        assert len(getattr(page, listing.items)) == (1 if listing.method == "ListSessions" else 0)
        assert page.next_page_token == ""


async def test_a_turn_nobody_knows_has_nothing(filled: Filled):
    for method, request, items in (
        ("ListMessages", pb.ListMessagesRequest, "messages"),
        ("ListToolCalls", pb.ListToolCallsRequest, "tool_calls"),
        ("ListEvents", pb.ListEventsRequest, "events"),
    ):
        call = request(session_id=filled.session_id, turn_id=str(uuid4()))
        assert list(getattr(await getattr(filled.client.sessions, method)(call), items)) == []
