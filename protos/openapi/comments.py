"""Takes a comment of the contract apart.

The conventions: the first sentence is the summary; a paragraph that begins with `Errors:` lists statuses with
their reasons, as in `NOT_FOUND with SESSION_NOT_FOUND`; one that begins with `Example:` holds one JSON value.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# The HTTP status that the transcoder answers with for each gRPC status (google/rpc/code.proto).
HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}

_STATUS = re.compile(rf"\b({'|'.join(HTTP_STATUS)})\b")
_REASON = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")


@dataclass(frozen=True)
class Comment:
    """A comment, taken apart.

    Attributes:
        description: its paragraphs without examples, as Markdown.
        examples: the JSON values given as examples.
        errors: gRPC status and reason, in the order of the text; a status may come with an empty reason.
    """

    description: str
    examples: Sequence[Any]
    errors: Sequence[tuple[str, str]]

    @property
    def summary(self) -> str:
        """The first sentence without its full stop."""
        first = self.description.split("\n\n", 1)[0].replace("\n", " ")
        return _SENTENCE_END.split(first, maxsplit=1)[0].rstrip(".")


def parse(text: str) -> Comment:
    """Returns a comment taken apart; an example that is not JSON stays in the description."""
    kept: list[str] = []
    examples: list[Any] = []
    errors: list[tuple[str, str]] = []
    for paragraph in _paragraphs(text):
        if paragraph.startswith("Example:"):
            try:
                examples.append(json.loads(paragraph.removeprefix("Example:").strip().removesuffix(".")))
                continue
            except json.JSONDecodeError:
                pass
        if paragraph.startswith("Errors:"):
            errors.extend(_errors(paragraph.removeprefix("Errors:")))
        kept.append(paragraph)
    return Comment(description="\n\n".join(kept), examples=examples, errors=errors)


def _paragraphs(text: str) -> list[str]:
    """Returns the paragraphs; `Example:` begins one without an empty line before it."""
    separated = re.sub(r"\n(?=Example:)", "\n\n", text)
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", separated) if paragraph.strip()]


def _errors(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for clause in re.split(r"[;.]\s", text):
        status = _STATUS.search(clause)
        if status is None:
            continue
        reasons = [word for word in _REASON.findall(clause) if word not in HTTP_STATUS]
        found.extend((status.group(1), reason) for reason in reasons or [""])
    return found
