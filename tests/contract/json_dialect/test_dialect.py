"""The dialect's promises, one by one, against Envoy."""

from typing import Any

import httpx
import pytest
from google.rpc import code_pb2, error_details_pb2
from jsonschema import Draft202012Validator

from tests.contract.json_dialect.conftest import Upstream, failure
from tests.contract.json_dialect.samples import UUID

pytestmark = pytest.mark.contract

SESSIONS = "/api/v1/sessions"


def judge_status(openapi: dict[str, Any], body: dict[str, Any]) -> None:
    """Fails where an error is not what the document says an error is."""
    schema = {"$ref": "#/components/schemas/Status", "components": openapi["components"]}
    Draft202012Validator(schema).validate(body)


@pytest.mark.parametrize("word", ["interactive", "INTERACTIVE", "Interactive"])
async def test_enum_words_are_taken_in_any_case(
    word: str, client: httpx.AsyncClient, upstream: Upstream
) -> None:
    response = await client.post(SESSIONS, json={"mode": word})
    assert response.status_code == 200
    assert response.json()["mode"] == "INTERACTIVE"
    [request] = upstream.received["CreateSession"]
    assert request.mode == 1


async def test_enum_words_in_a_query_too(client: httpx.AsyncClient, upstream: Upstream) -> None:
    response = await client.get(SESSIONS, params={"states": ["active", "FAILED"]})
    assert response.status_code == 200
    [request] = upstream.received["ListSessions"]
    assert list(request.states) == [3, 8]


@pytest.mark.parametrize(
    ("params", "body"),
    [
        ({}, {"mode": "bogus"}),
        ({}, {"sdk_options": {"max_turns": "many"}}),
        ({"bogus": "1"}, {}),
    ],
)
async def test_what_cannot_be_read_never_reaches_a_service(
    params: dict[str, str],
    body: dict[str, Any],
    client: httpx.AsyncClient,
    upstream: Upstream,
    openapi: dict[str, Any],
) -> None:
    response = await client.post(SESSIONS, params=params, json=body)
    assert response.status_code == 400
    assert upstream.received == {}
    judge_status(openapi, response.json())
    assert response.json()["details"][0]["reason"] == "INVALID_REQUEST"
    assert response.json()["details"][1]["field_violations"]


async def test_malformed_json_never_reaches_a_service(
    client: httpx.AsyncClient, upstream: Upstream, openapi: dict[str, Any]
) -> None:
    response = await client.post(SESSIONS, content=b'{"mode":', headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert upstream.received == {}
    judge_status(openapi, response.json())


async def test_what_is_not_documented_never_reaches_a_service(
    client: httpx.AsyncClient, upstream: Upstream
) -> None:
    await client.get("/api/v1/nothing")
    await client.put(SESSIONS)
    assert upstream.received == {}


async def test_field_masks_are_names_with_commas(client: httpx.AsyncClient, upstream: Upstream) -> None:
    body = {"name": "n", "update_mask": "name,sdk_options"}
    response = await client.patch(f"{SESSIONS}/{UUID}", json=body)
    assert response.status_code == 200
    [request] = upstream.received["UpdateSession"]
    assert list(request.update_mask.paths) == ["name", "sdk_options"]


async def test_errors_keep_their_details(
    client: httpx.AsyncClient, upstream: Upstream, openapi: dict[str, Any]
) -> None:
    upstream.failure = failure(
        code_pb2.INVALID_ARGUMENT,
        "the request is not valid",
        error_details_pb2.ErrorInfo(
            reason="INVALID_REQUEST", domain="session.aiagent", metadata={"request_id": "r"}
        ),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="name", description="is too long")
            ]
        ),
    )
    response = await client.post(SESSIONS, json={})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    judge_status(openapi, response.json())
    info, bad_request = response.json()["details"]
    assert info["reason"] == "INVALID_REQUEST"
    assert info["metadata"] == {"request_id": "r"}
    assert bad_request["field_violations"][0]["field"] == "name"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (code_pb2.UNAUTHENTICATED, 401),
        (code_pb2.PERMISSION_DENIED, 403),
        (code_pb2.NOT_FOUND, 404),
        (code_pb2.ALREADY_EXISTS, 409),
        (code_pb2.ABORTED, 409),
        (code_pb2.FAILED_PRECONDITION, 400),
        (code_pb2.RESOURCE_EXHAUSTED, 429),
        (code_pb2.INTERNAL, 500),
        (code_pb2.UNAVAILABLE, 503),
        (code_pb2.DEADLINE_EXCEEDED, 504),
    ],
)
async def test_each_status_has_its_http_status(
    code: int, status: int, client: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.failure = failure(code, "no")
    response = await client.get(f"{SESSIONS}/{UUID}")
    assert response.status_code == status
    assert response.json()["code"] == code


async def test_an_error_at_the_end_of_a_stream_leaves_whole_lines(
    client: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.failure = failure(code_pb2.UNAVAILABLE, "draining")
    response = await client.get(f"{SESSIONS}/{UUID}/watch", params={"cursor.sequence": "4"})
    assert response.status_code == 200
    assert len(response.text.splitlines()) == 3
    [request] = upstream.received["WatchSession"]
    assert request.cursor.sequence == 4
