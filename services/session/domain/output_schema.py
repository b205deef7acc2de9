"""Which JSON Schemas an agent can be held to: those of draft 7 that its validator takes in strict mode.

One that it does not take would fail every turn of the session, so it is refused where it is given.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match

MAX_DEPTH = 16
MAX_BYTES = 64 * 1024
_FIELD = "sdk_options.output_schema"
_DRAFT = "http://json-schema.org/draft-07/schema"
_OF_SCHEMAS = frozenset({"properties", "patternProperties", "definitions", "$defs", "dependencies"})
_SCHEMA_OR_LIST = frozenset(
    {
        *(
            "additionalItems",
            "additionalProperties",
            "allOf",
            "anyOf",
            "contains",
            "else",
            "if",
            "items",
            "not",
        ),
        *("oneOf", "propertyNames", "then"),
    }
)
_FAULTS_IN_ANY_DIALECT = (
    "missing )", "unbalanced paren", "unterminated character set", "nothing to repeat", "bad escape (end",
)  # fmt: skip
_KEYWORDS = frozenset(Draft7Validator.META_SCHEMA["properties"]) | {"$defs", "nullable"}


def find_fault(schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """Finds what is wrong with a schema.

    Args:
        schema: as JSON; not too deep to be walked over.

    Returns:
        The field and the rule that it breaks; None for a schema that can be used.
    """
    for path, value in _walk(schema, _FIELD, 1):
        fault = _shape(value, path)
        if fault is not None:
            return path, fault
    if len(json.dumps(schema, ensure_ascii=False).encode()) > MAX_BYTES:
        return _FIELD, f"must have at most {MAX_BYTES} bytes as JSON"
    if str(schema.get("$schema", _DRAFT)).rstrip("#") != _DRAFT:
        return f"{_FIELD}.$schema", f"must be {_DRAFT}#, or missing"
    wrong = best_match(Draft7Validator(Draft7Validator.META_SCHEMA).iter_errors(schema))
    if wrong is not None:
        path = ".".join([_FIELD, *map(str, wrong.absolute_path)])
        return path, f"is no JSON Schema of draft 7 (keyword {str(wrong.validator)!r})"
    for path, part in _schemas(schema, _FIELD):
        fault = _unusable(part, schema)
        if fault is not None:
            return path, fault
    kinds = _followed(schema, schema).get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        return _FIELD, "must describe an object: an agent gives its output as the input of a tool"
    return None


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH and isinstance(value, dict | list):
        yield path, _TooDeep
        return
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield path, key
            yield from _walk(inner, f"{path}.{key[:64]}", depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{index}]", depth + 1)


class _TooDeep:
    pass


def _shape(value: Any, path: str) -> str | None:
    if value is _TooDeep:
        return f"must be nested at most {MAX_DEPTH} deep"
    if isinstance(value, str) and "\0" in value:
        return "must have no NUL"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    return None


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all those within it."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, value in schema.items():
        if key in _OF_SCHEMAS and isinstance(value, dict):
            for name, inner in value.items():
                yield from _schemas(inner, f"{path}.{key}.{name}")
        elif key in _SCHEMA_OR_LIST:
            for index, inner in enumerate(value if isinstance(value, list) else ()):
                yield from _schemas(inner, f"{path}.{key}[{index}]")
            yield from _schemas(value, f"{path}.{key}")


def _unusable(part: Mapping[str, Any], whole: Mapping[str, Any]) -> str | None:
    unknown = next((key for key in part if key not in _KEYWORDS), None)
    if unknown is not None:
        return f"has the unknown keyword {unknown[:64]!r}"
    patterns = part.get("patternProperties")
    for pattern in (part.get("pattern"), *(patterns if isinstance(patterns, dict) else ())):
        if isinstance(pattern, str) and _broken(pattern):
            return f"has {pattern[:64]!r}, which is no regular expression"
    try:
        _followed(part, whole)
    except LookupError:
        return "must refer to a part of the schema itself, as `#/definitions/name`"
    except RecursionError:
        return "must not refer to itself alone"
    return None


def _broken(pattern: str) -> bool:
    """Whether a pattern is none in any dialect: the validator's is JavaScript's; others pass."""
    try:
        re.compile(pattern)
    except re.error as error:
        return error.msg.startswith(_FAULTS_IN_ANY_DIALECT)
    except (OverflowError, RecursionError):
        return True
    return False


def _followed(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference leads to, over others if need be.

    Raises:
        LookupError: It leads nowhere.
        RecursionError: It leads to itself.
    """
    seen: list[str] = []
    while isinstance(reference := part.get("$ref"), str):
        if reference in seen:
            raise RecursionError
        seen.append(reference)
        part = _found(reference, whole)
    return part


def _found(reference: str, whole: Any) -> Mapping[str, Any]:
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError
    found = whole
    for step in reference[2:].split("/") if reference != "#" else ():
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() else None
        elif isinstance(found, dict):
            found = found[name]
        else:
            raise LookupError
    # `true` and `false` are schemas, too.
    return found if isinstance(found, dict) else {}
