"""Requests are held to the rules in their contract (protovalidate)."""

from __future__ import annotations

import re
from typing import Any, Final

import protovalidate
from google.protobuf.message import Message

from services.kernel.errors import FieldViolation, invalid_argument

_REASON: Final = re.compile(r"[^A-Z0-9]+")
_MAX_KEY: Final = 64


class RequestValidator:
    """One engine for all messages; it keeps compiled rules."""

    def __init__(self, domain: str) -> None:
        """Args: domain: of the errors, `<service>.aiagent`."""
        self._domain = domain
        self._engine = protovalidate.Validator()

    def check(self, request: Any) -> None:
        """Raises ServiceError INVALID_ARGUMENT, INVALID_REQUEST, with every violated field."""
        if not isinstance(request, Message):
            return
        found = self._engine.collect_violations(request)
        if not found:
            return
        violations = [
            FieldViolation(
                field=field_path(violation.proto),
                description=violation.proto.message,
                reason=_REASON.sub("_", violation.proto.rule_id.upper()).strip("_"),
            )
            for violation in found
        ]
        first = violations[0]
        raise invalid_argument(
            "INVALID_REQUEST",
            f"{first.field}: {first.description}" if first.field else first.description,
            domain=self._domain,
            violations=violations,
        )


def field_path(violation: protovalidate.ViolationPb) -> str:
    """The violated field as the contract spells it: `a.b[2].c`, `labels["key"]`; empty for a rule on the message."""
    parts = []
    for element in violation.field.elements if violation.field is not None else ():
        text = element.field_name
        if element.subscript is not None:
            value = element.subscript.value
            text += f'["{value[:_MAX_KEY]}"]' if isinstance(value, str) else f"[{str(value).lower()}]"
        parts.append(text)
    return ".".join(parts)
