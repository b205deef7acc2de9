"""The variables of a prompt template: what may be declared, and which values they take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from services.kernel.errors import FieldViolation
from services.scheduler.domain.violations import refuse

MAX_VARIABLES: Final = 100
MAX_VALUE_CHARACTERS: Final = 64 * 1024
"""Of one text."""
MAX_VALUES_CHARACTERS: Final = 256 * 1024
"""Of all texts in the values of a run, names of fields included."""
MAX_VALUE_PARTS: Final = 10_000
MAX_VALUE_DEPTH: Final = 16
MAX_INTEGER: Final = 2**53
"""Beyond it JSON numbers are not exact."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TAKEN = frozenset(
    {
        *(
            "and",
            "as",
            "block",
            "call",
            "caller",
            "cycler",
            "dict",
            "elif",
            "else",
            "endif",
            "endfor",
            "extends",
        ),
        *(
            "false",
            "False",
            "filter",
            "for",
            "from",
            "if",
            "import",
            "in",
            "include",
            "is",
            "joiner",
            "kwargs",
        ),
        *(
            "lipsum",
            "loop",
            "macro",
            "namespace",
            "none",
            "None",
            "not",
            "or",
            "range",
            "recursive",
            "self",
            "set",
        ),
        *("super", "true", "True", "varargs", "with"),
    }
)


class VariableType(StrEnum):
    """What a variable holds; the names are those of the enum in the contract."""

    STRING = "STRING"
    INTEGER = "INTEGER"
    NUMBER = "NUMBER"
    BOOLEAN = "BOOLEAN"
    JSON = "JSON"
    """Any JSON value: lists and objects, too."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that a template may use.

    Attributes:
        name: A letter, then letters, digits and underscores; at most 64.
        type: What it holds.
        required: Whether a run must give it. One that is neither required nor given nor has a default is undefined: a
            template asks `{% if name is defined %}` first.
        default: What it holds if a run does not give it; None for no default.
    """

    name: str
    type: VariableType
    required: bool = False
    default: Any = None


def read_values(
    variables: Sequence[Variable], given: Mapping[str, Any], path: str = "variables"
) -> dict[str, Any]:
    """The values that a template is rendered with.

    Args:
        variables: what is declared.
        given: what a run or a schedule gives, as JSON values; a whole number may be a float.
        path: name of the field in violations.

    Returns:
        The given values in their types, and the defaults of what is not given.

    Raises:
        ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, and a violation `path.name` for each fault: MISSING,
            UNKNOWN, WRONG_TYPE, TOO_LARGE.
    """
    found: list[FieldViolation] = []
    values: dict[str, Any] = {}
    declared = {variable.name: variable for variable in variables}
    unknown = [name for name in given if name not in declared]
    found += [
        FieldViolation(f"{path}.{name[:64]}", "is no variable of this template", "UNKNOWN")
        for name in unknown[:MAX_VARIABLES]
    ]
    for name, variable in declared.items():
        if name in given:
            try:
                values[name] = _typed(variable.type, given[name])
            except _ValueFault as fault:
                found.append(FieldViolation(f"{path}.{name}", str(fault), fault.reason))
        elif variable.default is not None:
            values[name] = _typed(variable.type, variable.default)
        elif variable.required:
            found.append(FieldViolation(f"{path}.{name}", "must be given", "MISSING"))
    if not found and sum(map(_size, values.values())) > MAX_VALUES_CHARACTERS:
        description = f"must have at most {MAX_VALUES_CHARACTERS} characters together"
        found.append(FieldViolation(path, description, "TOO_LARGE"))
    if found:
        raise refuse(found)
    return values


class _ValueFault(ValueError):
    def __init__(self, reason: str, description: str) -> None:
        super().__init__(description)
        self.reason = reason


def check_declarations(variables: Sequence[Variable], path: str) -> list[FieldViolation]:
    """What is wrong with variables as they are declared.

    Args:
        variables: them.
        path: name of the field in violations.

    Returns:
        A violation for each fault: NAME, DUPLICATE, WRONG_TYPE, TOO_LARGE or TOO_MANY.
    """
    found = []
    seen: set[str] = set()
    if len(variables) > MAX_VARIABLES:
        found.append(FieldViolation(path, f"must be at most {MAX_VARIABLES}", "TOO_MANY"))
    for index, variable in enumerate(variables[:MAX_VARIABLES]):
        field = f"{path}[{index}]"
        if not _NAME.fullmatch(variable.name):
            description = "must be a letter, and up to 63 letters, digits and underscores"
            found.append(FieldViolation(f"{field}.name", description, "NAME"))
        elif variable.name in _TAKEN:
            found.append(FieldViolation(f"{field}.name", "is a word of the template language", "NAME"))
        elif variable.name in seen:
            description = f"must be declared once, and {variable.name} is there twice"
            found.append(FieldViolation(f"{field}.name", description, "DUPLICATE"))
        seen.add(variable.name)
        if variable.default is not None:
            try:
                _typed(variable.type, variable.default)
            except _ValueFault as fault:
                found.append(FieldViolation(f"{field}.default_value", str(fault), fault.reason))
    return found


def _typed(wanted: VariableType, value: Any) -> Any:
    """A value in the type that is wanted.

    Raises:
        _ValueFault: It is of another type, or too large.
    """
    match wanted:
        case VariableType.STRING if isinstance(value, str):
            _check_text(value)
            return value
        case VariableType.BOOLEAN if isinstance(value, bool):
            return value
        case VariableType.INTEGER if _is_number(value) and float(value).is_integer():
            if abs(value) > MAX_INTEGER:
                raise _ValueFault("TOO_LARGE", f"must be from -{MAX_INTEGER} to {MAX_INTEGER}")
            return int(value)
        case VariableType.NUMBER if _is_number(value):
            return _whole(value)
        case VariableType.JSON:
            return _json(value)
        case _:
            raise _ValueFault("WRONG_TYPE", f"must be of type {wanted.value}, and is {_kind(value)}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= 10**300


def _kind(value: Any) -> str:
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else kinds.get(type(value), "something else")


def _check_text(text: str) -> None:
    if len(text) > MAX_VALUE_CHARACTERS:
        raise _ValueFault("TOO_LARGE", f"must have at most {MAX_VALUE_CHARACTERS} characters in a text")
    fault = unstorable(text)
    if fault is not None:
        raise _ValueFault("WRONG_TYPE", fault)


def storable(text: str) -> str:
    """Returns a text without what PostgreSQL has no place for: U+0000 and lone surrogates become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def unstorable(text: str) -> str | None:
    """What keeps a text from being stored, in words; None if nothing does."""
    if "\0" in text:
        return "must have no NUL"
    return "must have no half of a surrogate pair" if re.search("[\ud800-\udfff]", text) else None


def _json(value: Any) -> Any:
    """A JSON value with whole numbers as such; without recursion, since what is given may be deep."""
    waiting, parts = [(value, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        parts += 1
        if depth > MAX_VALUE_DEPTH:
            raise _ValueFault("TOO_LARGE", f"must be nested at most {MAX_VALUE_DEPTH} deep")
        if parts + len(waiting) > MAX_VALUE_PARTS:
            raise _ValueFault("TOO_LARGE", f"must have at most {MAX_VALUE_PARTS} parts")
        if isinstance(part, str):
            _check_text(part)
        elif isinstance(part, list):
            waiting += ((inner, depth + 1) for inner in part)
        elif isinstance(part, dict):
            for name, inner in part.items():
                if not isinstance(name, str):
                    raise _ValueFault("WRONG_TYPE", "must have texts as names of fields")
                _check_text(name)
                waiting.append((inner, depth + 1))
        elif part is not None and not isinstance(part, bool) and not _is_number(part):
            raise _ValueFault("WRONG_TYPE", "must be JSON")
    return _whole(value)


def _whole(value: Any) -> Any:
    # Structs of protobuf know floats alone; 3.0 is written as 3.
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INTEGER:
        return int(value)
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    return value


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    if isinstance(value, dict):
        return sum(len(name) + _size(inner) for name, inner in value.items())
    return 0
