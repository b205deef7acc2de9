"""Permission rules over the wire: a malformed one is refused where it is given, and changes nothing."""

from __future__ import annotations

import pytest

from aiagent.session.v1 import session_service_pb2 as pb

from .serving import Serving, refusal

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("field", ["allowed_tools", "disallowed_tools"])
@pytest.mark.parametrize("rule", ["Read(", "Bash)", "Read()(", "Bash(rm\n:*)", "Bash,Read", " "])
async def test_a_malformed_rule_is_refused(api: Serving, field: str, rule: str) -> None:
    client = api.client()
    options = {field: ["Bash(git log:*)", "mcp__unknown__tool", rule]}
    creation = pb.CreateSessionRequest(name="refused", sdk_options=options)
    error = await refusal(client.sessions.CreateSession(creation))
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert error.violations[0].field == f"sdk_options.{field}[2]"
    assert not (await client.sessions.ListSessions(pb.ListSessionsRequest(name_contains="refused"))).sessions

    session = await client.session(sdk_options={field: ["Bash"]})
    change = pb.UpdateSessionRequest(
        session_id=session.id, sdk_options=options, update_mask={"paths": ["sdk_options"]}
    )
    error = await refusal(client.sessions.UpdateSession(change))
    assert error.violations[0].field == f"sdk_options.{field}[2]"
    now = await client.get(session.id)
    assert (list(getattr(now.sdk_options, field)), now.etag) == (["Bash"], session.etag)


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "nonsense"}, ".type"),
        ({"description": "a\0b"}, ".description"),
        ({"minimum": float("nan")}, ""),
        ({"properties": {"a": {"$ref": "https://example.org/schema"}}}, ".properties.a"),
    ],
)
async def test_a_schema_that_no_turn_could_keep_is_refused(api: Serving, schema: dict, field: str) -> None:
    client = api.client()
    options = {"output_schema": schema}
    error = await refusal(client.sessions.CreateSession(pb.CreateSessionRequest(sdk_options=options)))
    assert (error.kind.value, error.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert error.violations[0].field == f"sdk_options.output_schema{field}"

    session = await client.session(sdk_options={"output_schema": {"type": "object"}})
    change = pb.UpdateSessionRequest(
        session_id=session.id, sdk_options=options, update_mask={"paths": ["sdk_options"]}
    )
    assert (await refusal(client.sessions.UpdateSession(change))).reason == "INVALID_REQUEST"
    assert (await client.get(session.id)).etag == session.etag


async def test_a_mask_names_whole_fields(api: Serving) -> None:
    client = api.client()
    session = await client.session(sdk_options={"model": "a-model"})
    change = pb.UpdateSessionRequest(
        session_id=session.id, sdk_options={"model": "another"}, update_mask={"paths": ["sdk_options.model"]}
    )
    error = await refusal(client.sessions.UpdateSession(change))
    assert (error.reason, error.violations[0].field) == ("INVALID_REQUEST", "update_mask")
    assert (await client.get(session.id)).etag == session.etag
