"""What the model API refuses for good: the key, the credit, the model. Trying again helps nobody; a person must act.

The statuses and error types are those of https://docs.claude.com/en/api/errors. The texts are ours: what the API says
may quote what it was sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

NO_RETRY: Final = ("x-should-retry", "false")
"""The header that the API's own clients, the CLI among them, take as the last word on another try."""
FINAL_STATUSES: Final = frozenset({401, 402, 403, 404})
MOST_BYTES: Final = 64 * 1024
_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a turn cannot go on; `reason` is listed in docs/guide/sessions.md, `message` may be shown to a person."""

    reason: str
    message: str


def read(status: int, body: bytes, model: str) -> Refusal | None:
    """Reads an answer of the model API.

    Args:
        status: Its HTTP status.
        body: Its beginning.
        model: The model that was asked for, as the agent named it.

    Returns:
        None for a success, and for an error that may pass or that is the request's own.
    """
    kind, message = _error(body)
    if status in (401, 403):
        return Refusal(
            "MODEL_ACCESS_DENIED",
            f"the model API answered {status}: it does not accept this server's API key, or the key may not use the"
            " model; whoever runs the server must check ANTHROPIC_API_KEY",
        )
    if status == 402 or (status == 400 and "credit balance is too low" in message.lower()):
        return Refusal(
            "MODEL_CREDIT_EXHAUSTED",
            f"the model API answered {status}: the credit of this server's account is used up; whoever runs the"
            " server must add some",
        )
    if status == 404 and kind == "not_found_error":
        return Refusal("MODEL_UNKNOWN", f"the model API knows no model {model[:_NAME]!r}")
    return None


def _error(body: bytes) -> tuple[str, str]:
    try:
        error: Any = json.loads(body)["error"]
        return str(error.get("type") or ""), str(error.get("message") or "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", ""


def asked_model(body: bytes) -> str:
    """The model that a request names, empty if it names none."""
    try:
        return str(json.loads(body)["model"])
    except (ValueError, TypeError, KeyError):
        return ""
