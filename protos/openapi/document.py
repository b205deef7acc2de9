"""The OpenAPI document as a whole."""

import json
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos.openapi.comments import parse
from protos.openapi.contract import Contract, ContractError
from protos.openapi.errors import STATUS_SCHEMAS, Reasons
from protos.openapi.operations import Operations, tag_of
from protos.openapi.schemas import Schemas

_INTRODUCTION = """\
Claude Code agents as a service: the same API that gRPC clients use, as JSON over HTTP.

Names are those of the contract (`access_token`, `sdk_options`). Words of an enum are accepted in any case and
sent in upper case. 64-bit integers are strings, times RFC 3339, durations seconds with an `s`, bytes base64.
Empty fields are sent with their empty value; messages that are not set are left out. Send the access token as
`Authorization: Bearer …`, and an id of your own as `x-request-id` to find the call again in logs.
"""

_ERRORS = """\
A failed call answers with the HTTP status that belongs to the gRPC status, and with a `Status`. Its
`ErrorInfo` has a reason and a domain; these are the reasons.
"""


def build_document(descriptors: FileDescriptorSet) -> dict[str, Any]:
    """Returns the OpenAPI document of the methods that have an HTTP binding.

    Arguments:
        descriptors: the contract with all its imports, in dependency order, with source information.

    Raises ContractError when the contract says what the document cannot.
    """
    contract = Contract(descriptors)
    schemas = Schemas(contract)
    operations = Operations(contract, schemas)
    paths: dict[str, dict[str, Any]] = {}
    tags: list[dict[str, Any]] = []
    packages: list[str] = []
    for service in contract.services():
        described = False
        for method in service.methods:
            for path, verb, operation in operations.of(method):
                described = True
                if verb in paths.setdefault(path, {}):
                    raise ContractError(
                        f"{method.full_name}: {verb.upper()} {path} belongs to another method"
                    )
                paths[path][verb] = operation
        if described:
            tags.append(
                {"name": tag_of(service.name), "description": parse(contract.comment(service)).description}
            )
            if service.file.package not in packages:
                packages.append(service.file.package)
    tags.append({"name": "Errors", "description": f"{_ERRORS}\n{Reasons(contract).table(packages)}"})
    components = schemas.components()
    if clash := components.keys() & STATUS_SCHEMAS.keys():
        raise ContractError(f"{', '.join(sorted(clash))}: the name belongs to google.rpc")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AI-Agent-API",
            "version": "v1",
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"accessToken": []}],
        "tags": tags,
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted({**components, **STATUS_SCHEMAS}.items())),
            "securitySchemes": {
                "accessToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The `access_token` of Login.",
                }
            },
        },
    }


def render(document: dict[str, Any]) -> str:
    """Returns the document as JSON text, the same for the same document."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
