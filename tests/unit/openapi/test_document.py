"""The document as a whole, of the small contract and of the real one."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from protos.openapi import build_document, render

pytestmark = pytest.mark.unit

COMMITTED = Path(__file__).parents[3] / "protos" / "gen" / "openapi.json"


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_the_committed_one_is_valid() -> None:
    document = json.loads(COMMITTED.read_text("utf-8"))
    OpenAPIV31SpecValidator(document).validate()
    identifiers = [
        operation["operationId"] for verbs in document["paths"].values() for operation in verbs.values()
    ]
    assert len(identifiers) == len(set(identifiers)) > 20


def test_examples_are_what_their_schemas_say() -> None:
    document = json.loads(COMMITTED.read_text("utf-8"))
    bodies = [
        content["schema"]
        for verbs in document["paths"].values()
        for operation in verbs.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
    ]
    schemas = [*document["components"]["schemas"].values(), *bodies]
    with_examples = [schema for schema in schemas if schema.get("type") == "object" and "examples" in schema]
    assert len(with_examples) >= 5
    for schema in with_examples:
        validator = Draft202012Validator({**schema, "components": document["components"]})
        for example in schema["examples"]:
            validator.validate(example)


def test_the_same_contract_gives_the_same_bytes(library: FileDescriptorSet, document: dict[str, Any]) -> None:
    assert render(build_document(library)) == render(document)
