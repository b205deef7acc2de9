"""What options hold that is more than a word: rules, labels, variables, time spans, texts in files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import typer
from google.protobuf.json_format import ParseDict

from aiagent.scheduler.v1.task_pb2 import TaskVariable
from aiagent_client.cli.failures import UsageError

# Of a rule, only its form: which tools there are and what their patterns may be, the server knows.
_RULE: Final = re.compile(r"[^\s()]+(\(.*\))?")
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\?)?(?::([A-Za-z]+))?(?:=(.*))?", re.DOTALL)
_TYPES: Final = [name for name, number in TaskVariable.Type.items() if number]
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def rules(option: str, given: Sequence[str] | None) -> list[str]:
    """Returns the rules of tools that an option was given."""
    for text in given or []:
        if not _RULE.fullmatch(text.strip()):
            raise typer.BadParameter(
                f"a tool's rule looks like Tool or 'Tool(pattern)', not {text!r}", param_hint=option
            )
    return list(given or [])


def labels(given: Sequence[str] | None) -> dict[str, str]:
    """Returns the labels that were given as KEY=VALUE. Raises UsageError."""
    found = {}
    for text in given or []:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"a label looks like KEY=VALUE, not {text!r}")
        found[key] = value
    return found


def text_or_file(text: str) -> str:
    """Returns the text, or what the file holds that it names as @FILE. Raises UsageError."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {text[1:]}: {error}") from error


def time_span(option: str, text: str) -> timedelta:
    """Returns a time span that was given as 90, 90s, 30m, 2h or 1d."""
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None:
        raise typer.BadParameter(
            f"a time span looks like 90s, 30m, 2h or 1d, not {text!r}", param_hint=option
        )
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long", param_hint=option) from None


def moment(option: str, text: str) -> datetime:
    """Returns a time that was given in ISO 8601; one without an offset is this machine's."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"a time looks like 2026-03-29, 2026-03-29T09:00 or 2026-03-29T09:00+02:00, not {text!r}",
            param_hint=option,
        ) from None


def variables(option: str, given: Sequence[str] | None) -> list[TaskVariable]:
    """Returns the variables of a template that were given as NAME, NAME?, NAME:TYPE or NAME:TYPE=DEFAULT.

    One without a default and without `?` is required.
    """
    found = []
    for text in given or []:
        match = _VARIABLE.fullmatch(text.strip())
        if match is None:
            raise typer.BadParameter(
                f"a variable looks like NAME, NAME?, NAME:TYPE or NAME:TYPE=DEFAULT, not {text!r}",
                param_hint=option,
            )
        name, optional, kind, default = match.groups()
        kind = (kind or "string").upper()
        if kind not in _TYPES:
            known = ", ".join(word.lower() for word in _TYPES)
            raise typer.BadParameter(f"{kind.lower()} is none of {known}", param_hint=option)
        made = TaskVariable(name=name, type=TaskVariable.Type.Value(kind))
        if default is None:
            made.required = not optional
        else:
            ParseDict(_value(option, kind, default), made.default_value)
        found.append(made)
    return found


def values(option: str, given: Sequence[str] | None) -> dict[str, Any]:
    """Returns values of variables that were given as NAME=TEXT or NAME:=JSON."""
    found: dict[str, Any] = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        if not sign or not name.removesuffix(":"):
            raise typer.BadParameter(
                f"a value looks like NAME=TEXT or NAME:=JSON, not {text!r}", param_hint=option
            )
        found[name.removesuffix(":")] = _value(option, "JSON", value) if name.endswith(":") else value
    return found


def _value(option: str, kind: str, text: str) -> Any:
    if kind == "STRING":
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise typer.BadParameter(
            f"a value of type {kind.lower()} is written as JSON, not {text!r}", param_hint=option
        ) from None
