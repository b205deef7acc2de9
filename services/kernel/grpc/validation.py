"""Requests are held to the rules in their contract (protovalidate)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from services.kernel.errors import FieldViolation, ServiceError, invalid_argument
from services.kernel.grpc.structures import oversize

_REASON: Final = re.compile(r"[^A-Z0-9]+")
_MAX_KEY: Final = 64
_WORDS: Final = {
    r"^[A-Za-z0-9._:-]{0,128}$": "may have at most 128 characters, of letters, digits and . _ : -",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "must begin with a letter or digit and go on with letters, digits and . _ -",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{2,63}$": "must have 3 to 64 characters, of letters, digits and . _ -, the first"
    " a letter or digit",
    r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$|^$": "may have at most 128 characters, of letters, digits and"
    " . _ : @ / -, the first a letter or digit",
    r"\S": "must not be blank",
    r"^([A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7})?$": "must be a relative path"
    " of at most 8 names, each of letters, digits and . _ - and none beginning with a dot",
    r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$": "must be the name of an HTTP header",
    r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$": "must have 1 to 63 characters, of letters, digits and . _ / -, the first"
    " a letter or digit",
    r"^[A-Za-z0-9_-]{1,64}$": "must have 1 to 64 characters, of letters, digits and _ -",
    r"^[A-Za-z_][A-Za-z0-9_]{0,127}$": "must be the name of an environment variable",
    r"^[A-Za-z][A-Za-z0-9_]{0,63}$": "must have 1 to 64 characters, of letters, digits and _, the first a letter",
    r"^[A-Z][A-Z0-9_]{0,63}$": "must have 1 to 64 characters, of capital letters, digits and _, the first a letter",
    r"^[!-~]*$": "must have no blanks and no characters beyond ASCII",
    r"^[^\x00\r\n]*$": "must have no line breaks and no NUL",
}
"""What the patterns of the contracts say, in words: nobody should have to read an expression in an error."""


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
        too_large = oversize(request)
        if too_large is not None:
            # Before the rules of the contract, which look at every part.
            raise self._refusal([too_large])
        found = self._engine.collect_violations(request)
        if not found:
            return
        violations = [
            FieldViolation(
                field=field_path(violation.proto),
                description=_description(violation, request),
                reason=_REASON.sub("_", violation.proto.rule_id.upper()).strip("_"),
            )
            for violation in _one_for_each_fault(found)
        ]
        raise self._refusal(violations)

    def _refusal(self, violations: Sequence[FieldViolation]) -> ServiceError:
        first = violations[0]
        return invalid_argument(
            "INVALID_REQUEST",
            f"{first.field}: {first.description}" if first.field else first.description,
            domain=self._domain,
            violations=violations,
        )


def description_of_pattern(pattern: str) -> str | None:
    """What a pattern of the contracts asks for, in words; None for one that has none."""
    return _WORDS.get(pattern)


def _one_for_each_fault(found: Sequence[protovalidate.Violation]) -> list[protovalidate.Violation]:
    """What breaks a pattern because it is empty breaks a least length as well: the pattern's words say it all."""
    formless = {
        field_path(violation.proto) for violation in found if violation.proto.rule_id == "string.pattern"
    }
    return [
        violation
        for violation in found
        if violation.proto.rule_id != "string.min_len" or field_path(violation.proto) not in formless
    ]


def _description(violation: protovalidate.Violation, request: Message) -> str:
    rule, value = violation.proto.rule_id, violation.rule_value
    match rule:
        case "string.pattern":
            return description_of_pattern(str(value)) or "has a form that is not allowed"
        case "string.min_len" if value == 1:
            return "must not be empty"
        case "string.not_contains" if value == "\0":
            return "must have no NUL"
    enum = _enum_of(violation.proto, request) if rule.startswith("enum.") else None
    if enum is not None:
        names = enum.values_by_number
        match rule:
            case "enum.in":
                return "must be one of " + ", ".join(names[number].name for number in value)
            case "enum.not_in":
                return "must not be " + ", ".join(names[number].name for number in value)
            case "enum.defined_only":
                return "must be one of " + ", ".join(names[number].name for number in sorted(names) if number)
    return violation.proto.message


def _enum_of(violation: protovalidate.ViolationPb, request: Message) -> EnumDescriptor | None:
    """The kind of the violated field, if it is an enum."""
    within: Any = request.DESCRIPTOR
    kind = None
    for element in violation.field.elements if violation.field is not None else ():
        field = within.fields_by_name.get(element.field_name) if within is not None else None
        if field is not None and field.message_type is not None and field.message_type.GetOptions().map_entry:
            field = field.message_type.fields_by_name["value"]
        if field is None:
            return None
        within, kind = field.message_type, field.enum_type
    return kind


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
