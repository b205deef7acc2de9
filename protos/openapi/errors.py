"""How a failed call looks in JSON: google.rpc.Status with its details."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from protos.openapi.comments import HTTP_STATUS, parse
from protos.openapi.contract import Contract
from protos.openapi.rules import Schema

_PREFIX = "type.googleapis.com/google.rpc."


def _detail(name: str, description: str, properties: Mapping[str, Schema]) -> Schema:
    return {
        "type": "object",
        "title": name,
        "description": description,
        "properties": {"@type": {"type": "string", "const": _PREFIX + name}, **properties},
        "required": ["@type"],
    }


_TEXT: Schema = {"type": "string"}

STATUS_SCHEMAS: Mapping[str, Schema] = {
    "Status": {
        "type": "object",
        "description": "Why a call failed.",
        "properties": {
            "code": {
                "type": "integer",
                "format": "int32",
                "description": "The gRPC status, a number of `google.rpc.Code`.",
            },
            "message": {
                "type": "string",
                "description": "One sentence for a developer; the reason is what to switch on.",
            },
            "details": {
                "type": "array",
                "description": "Always an ErrorInfo and a RequestInfo; others as the error has them.",
                "items": {
                    "anyOf": [
                        {"$ref": f"#/components/schemas/Status.{name}"}
                        for name in ("ErrorInfo", "BadRequest", "RetryInfo", "RequestInfo")
                    ]
                },
            },
        },
        "required": ["code", "message"],
    },
    "Status.ErrorInfo": _detail(
        "ErrorInfo",
        "The reason, stable and made to switch on.",
        {
            "reason": _TEXT
            | {"description": "A name listed under *Errors*.", "examples": ["SESSION_NOT_FOUND"]},
            "domain": _TEXT | {"description": "Who gave the reason.", "examples": ["session.aiagent"]},
            "metadata": {"type": "object", "additionalProperties": _TEXT},
        },
    ),
    "Status.BadRequest": _detail(
        "BadRequest",
        "The fields that broke a rule.",
        {
            "field_violations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "field": _TEXT | {"description": "Path of the field, as in `sdk_options.max_turns`."},
                        "description": _TEXT,
                        "reason": _TEXT | {"description": "The rule's name."},
                    },
                },
            }
        },
    ),
    "Status.RetryInfo": _detail(
        "RetryInfo",
        "When to try again.",
        {"retry_delay": _TEXT | {"description": "Seconds, as in `12s`."}},
    ),
    "Status.RequestInfo": _detail(
        "RequestInfo",
        "The id under which the server logged the call; also in the header `x-request-id`.",
        {"request_id": _TEXT, "serving_data": _TEXT},
    ),
}


# What the edge answers before a call reaches a service (deploy/envoy); a test compares the two.
EDGE_REASONS: Mapping[str, str] = {
    "TOKEN_MISSING": "The call needs an access token.",
    "TOKEN_EXPIRED": "The access token has expired: refresh it.",
    "TOKEN_INVALID": "The access token is not valid.",
    "INVALID_REQUEST": "The request is not JSON, or a word, a number or a parameter in it cannot be read.",
    "CONTENT_TYPE_UNSUPPORTED": "The body is of a kind that the method does not take.",
    "FORBIDDEN": "The edge does not let this call through.",
    "NO_SUCH_METHOD": "There is no method at this path and verb.",
    "UPGRADE_REQUIRED": "The protocol is not spoken here.",
    "REQUEST_TOO_LARGE": "The body is larger than 16 MiB.",
    "HEADERS_TOO_LARGE": "The headers are too large.",
    "TOO_MANY_REQUESTS": "Too many calls: try again later.",
    "REQUEST_TIMEOUT": "The call took too long.",
    "SERVICE_UNAVAILABLE": "The service cannot be reached: try again.",
    "INTERNAL": "The edge failed.",
}


class Reasons:
    """The reasons that each service documents in its `ErrorReason.Reason`."""

    def __init__(self, contract: Contract) -> None:
        self._documented: dict[str, dict[str, str]] = {}
        for enum in contract.enums():
            if enum.full_name.endswith(".ErrorReason.Reason"):
                self._documented[enum.file.package] = {
                    value.name: contract.comment(value) for value in enum.values if value.number
                }

    def of(self, service: ServiceDescriptor) -> Mapping[str, str]:
        """Returns the reasons of the service's package with their comments."""
        return self._documented.get(service.file.package, {})

    def table(self, packages: Sequence[str]) -> str:
        """Returns the reasons of the packages, and those of the edge, as Markdown tables."""
        tables = [
            _table(f"{package.split('.')[1]}.aiagent", self._documented[package])
            for package in packages
            if package in self._documented
        ]
        return "\n\n".join([*tables, _table("aiagent", EDGE_REASONS)])


def _table(domain: str, reasons: Mapping[str, str]) -> str:
    rows = [f"### `{domain}`", "", "| reason | meaning |", "|---|---|"]
    for name, text in reasons.items():
        meaning = text.replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{name}` | {meaning} |")
    return "\n".join(rows)


def responses(
    errors: Sequence[tuple[str, str]], reasons: Mapping[str, str], *, public: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields HTTP status and response object for what a method may answer besides success.

    Arguments:
        errors: gRPC status and reason, as the comments name them.
        reasons: what each reason means.
        public: True when the method needs no token.
    """
    found = list(errors)
    if not public:
        found.append(("UNAUTHENTICATED", ""))
    by_status: dict[int, list[str]] = {}
    for status, reason in found:
        lines = by_status.setdefault(HTTP_STATUS[status], [])
        if reason:
            meaning = parse(reasons.get(reason, "")).summary
            line = f"- {status}, `{reason}`: {meaning}" if meaning else f"- {status}, `{reason}`"
        elif status == "UNAUTHENTICATED":
            line = "- UNAUTHENTICATED: the access token is missing, expired or not valid"
        else:
            line = f"- {status}"
        if line not in lines:
            lines.append(line)
    for code in sorted(by_status):
        yield str(code), {"description": "\n".join(by_status[code]), "content": _CONTENT}
    yield "default", {"description": "Any other error.", "content": _CONTENT}


_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}
