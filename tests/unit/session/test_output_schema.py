"""Which output schemas are taken; that the agent's own validator agrees is tried beside the contracts."""

from __future__ import annotations

from typing import Any

import pytest

from services.session.domain.output_schema import MAX_BYTES, MAX_DEPTH, find_fault

pytestmark = pytest.mark.unit
DRAFT = "http://json-schema.org/draft-07/schema#"


def nested(depth: int) -> dict[str, Any]:
    """A schema of so many levels, each of which is two of JSON."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"properties": {"inner": schema}}
    return schema


GOOD = [
    {},
    {"$schema": DRAFT, "type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}},
    {"properties": {"unknown words": {"type": "string"}, "$ref": {"type": "string"}}},
    {"$ref": "#/definitions/a", "definitions": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}},
    {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"enum": [{"any": "thing"}]}}},
    {"items": {"not": {"const": {"$ref": "nowhere"}}}, "default": {"$ref": "nowhere"}},
    {"properties": {"a": {"pattern": "^(?<year>\\d{4})[\\p{L}]$"}, "b": {"$ref": "#"}}},
    {"type": ["object", "null"], "patternProperties": {"^x-": {"type": "string"}}},
    nested((MAX_DEPTH - 2) // 2),
]
BAD = [
    ({"type": "nonsense"}, ".type", "draft 7"),
    ({"properties": {"a": {"required": "a"}}}, ".properties.a.required", "draft 7"),
    ({"$schema": "https://json-schema.org/draft/2020-12/schema"}, ".$schema", DRAFT),
    ({"prefixItems": []}, "", "'prefixItems'"),
    ({"allOf": [{"type": "object"}, {"foo": 1}]}, ".allOf[1]", "'foo'"),
    ({"properties": {"a": {"$ref": "https://example.org/schema"}}}, ".properties.a", "itself"),
    ({"$ref": "#/definitions/b", "definitions": {"a": {}}}, "", "itself"),
    ({"$ref": "#named"}, "", "itself"),
    ({"$ref": "#"}, "", "itself alone"),
    (
        {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}},
        ".properties.a",
        "alone",
    ),
    ({"type": "string"}, "", "an object"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": ["array"]}}}, "", "an object"),
    ({"properties": {"a": {"pattern": "("}}}, ".properties.a", "regular expression"),
    ({"patternProperties": {"[a": {}}}, "", "regular expression"),
    ({"properties": {"a": {"pattern": "*"}}}, ".properties.a", "regular expression"),
    ({"description": "a\0b"}, ".description", "NUL"),
    ({"properties": {"a\0b": {}}}, ".properties", "NUL"),
    ({"minimum": float("inf")}, ".minimum", "finite"),
    (nested(MAX_DEPTH), "", f"{MAX_DEPTH} deep"),
    ({"description": "x" * MAX_BYTES}, "", f"{MAX_BYTES} bytes"),
]


@pytest.mark.parametrize("schema", GOOD)
def test_what_can_be_used_is_taken(schema: dict[str, Any]) -> None:
    assert find_fault(schema) is None


@pytest.mark.parametrize(("schema", "field", "rule"), BAD)
def test_what_would_fail_every_turn_is_refused(schema: dict[str, Any], field: str, rule: str) -> None:
    fault = find_fault(schema)
    assert fault is not None
    where, why = fault
    assert where.startswith(f"sdk_options.output_schema{field}")
    assert rule in why
