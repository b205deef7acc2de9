"""What is printed when something went wrong, and the exit code."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.text import Text

from aiagent_client.cli.output import console_for
from aiagent_client.cli.text import safe
from aiagent_client.connection import DEFAULT_URL
from aiagent_client.errors import ApiError, ClientError, NotLoggedInError, UnavailableError

FAILED = 1
WRONG_USE = 2
LEFT = 130


class UsageError(ClientError):
    """The command was used wrongly in a way only its work could find out: exit code 2."""


class FailedError(ClientError):
    """The command did its work and has bad news that it has told already: exit code 1."""


def report(error: ClientError, url: str, *, as_json: bool) -> int:
    """Prints an error to standard error, as one line for people or one JSON document, and returns the exit code."""
    if isinstance(error, FailedError) and not str(error):
        return FAILED
    if as_json:
        print(json.dumps({"error": _document(error, url)}), file=sys.stderr)
    else:
        console = console_for(sys.stderr)
        console.print(Text.assemble(("error: ", "bold red"), safe(_sentence(error, url))), soft_wrap=True)
        if isinstance(error, ApiError):
            for violation in error.field_violations:
                line = f"{violation.field}: {violation.description}"
                if line != error.message:
                    console.print(f"  {safe(line)}", soft_wrap=True)
    return WRONG_USE if isinstance(error, UsageError) else FAILED


def report_wrong_use(message: str) -> None:
    """Prints what is wrong with a command line, for programs."""
    report_to_programs("Usage", message)


def report_to_programs(reason: str, message: str) -> None:
    """Prints an error of the command line itself, for programs."""
    document = {"code": "CLIENT", "reason": reason, "message": message}
    print(json.dumps({"error": document}), file=sys.stderr)


def _sentence(error: ClientError, url: str) -> str:
    if isinstance(error, NotLoggedInError):
        return (
            f"{error}; log in with `ai-agent auth login`, or create an account with `ai-agent auth register`"
        )
    if not isinstance(error, ApiError):
        return str(error)
    if isinstance(error, UnavailableError) and not error.reason:
        if url == DEFAULT_URL:
            return (
                f"no answer from the server at {url}; start it with `make run`, "
                "or name another one with `ai-agent config set-url URL`"
            )
        return (
            f"no answer from the server at {url}; is it running? "
            "`ai-agent config set-url URL` names another one"
        )
    text = error.message
    if error.reason == "CREDENTIALS_INVALID":
        return "wrong e-mail address, user name or password"
    if error.retry_after:
        text += f"; try again in {error.retry_after:.0f} s"
    name = error.reason or error.code.name
    # People need the id only where the cause is in the server's logs.
    hint = f" (request {error.request_id})" if error.code.name in ("INTERNAL", "UNKNOWN") else ""
    return f"{text} [{name}]{hint}"


def _document(error: ClientError, url: str) -> dict[str, Any]:
    if not isinstance(error, ApiError):
        return {"code": "CLIENT", "reason": type(error).__name__.removesuffix("Error"), "message": str(error)}
    found: dict[str, Any] = {
        "code": error.code.name,
        "reason": error.reason,
        "domain": error.domain,
        "message": error.message,
        "metadata": error.metadata,
        "field_violations": [
            {"field": violation.field, "description": violation.description, "reason": violation.reason}
            for violation in error.field_violations
        ],
        "request_id": error.request_id,
        "url": url,
    }
    if error.retry_after is not None:
        found["retry_after"] = error.retry_after
    return found
