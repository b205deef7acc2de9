"""The OpenAPI document against Envoy: each operation is called as documented, with everything set."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from jsonschema import Draft202012Validator

from tests.contract.json_dialect.conftest import GENERATED, Upstream, public_methods
from tests.contract.json_dialect.samples import sample

pytestmark = pytest.mark.contract

BINARY = "*/*"


def operations() -> list[Any]:
    document = json.loads(Path(GENERATED, "openapi.json").read_text("utf-8"))
    return [
        pytest.param(path, verb, operation, id=f"{verb.upper()} {path}")
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    ]


def judge(openapi: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Fails where a value is not what its documented schema says."""
    Draft202012Validator({**schema, "components": openapi["components"]}).validate(value)


def pick(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return values


def keep_only(message: Message, names: set[str], prefix: str = "") -> None:
    """Clears every field of a request that the documented call does not carry."""
    for field in message.DESCRIPTOR.fields:
        name = f"{prefix}{field.name}"
        if name in names:
            continue
        inside = {other for other in names if other.startswith(f"{name}.")}
        if inside and message.HasField(field.name):
            keep_only(getattr(message, field.name), names, f"{name}.")
        else:
            message.ClearField(field.name)


@pytest.mark.parametrize(("path", "verb", "operation"), operations())
async def test_operation(
    path: str,
    verb: str,
    operation: dict[str, Any],
    openapi: dict[str, Any],
    upstream: Upstream,
    client: httpx.AsyncClient,
) -> None:
    service, name, *_ = operation["operationId"].split("_")
    method = next(
        method
        for method in public_methods().values()
        if (method.containing_service.name, method.name) == (service, name)
    )
    request = sample(method.input_type)
    values = json_format.MessageToDict(request, preserving_proto_field_name=True)
    # Of the members of a oneof, a request has one.
    parameters = [item for item in operation.get("parameters", []) if pick(values, item["name"]) is not None]
    in_path = {item["name"] for item in parameters if item["in"] == "path"}
    in_query = {item["name"] for item in parameters if item["in"] == "query"}
    for item in parameters:
        judge(openapi, item["schema"], pick(values, item["name"]))
    sent = in_path | in_query
    keywords: dict[str, Any] = {
        "params": {item: pick(values, item) for item in sorted(in_query)},
    }
    body = operation.get("requestBody", {}).get("content", {})
    if BINARY in body:
        field = next(field for field in method.input_type.fields if field.message_type is not None)
        keywords["content"] = getattr(request, field.name).data
        keywords["headers"] = {"content-type": getattr(request, field.name).content_type}
        sent.add(field.name)
    elif body:
        keywords["json"] = {key: value for key, value in values.items() if key not in in_path}
        judge(openapi, body["application/json"]["schema"], keywords["json"])
        sent |= keywords["json"].keys()

    response = await client.request(verb, path.format_map(values), **keywords)

    assert response.status_code == 200, response.text
    keep_only(request, sent)
    assert upstream.received[name] == [request]
    documented = operation["responses"]["200"]["content"]
    answer = sample(method.output_type)
    if BINARY in documented:
        assert response.content == b"".join([next(iter(answer.ListFields()))[1].data] * 3)
        return
    assert response.headers["content-type"] == "application/json"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert len(lines) == (3 if method.server_streaming else 1)
    for line in lines:
        judge(openapi, documented["application/json"]["schema"], line)
        assert line == json_format.MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
