"""Finding what a person named: a session or a question, by id, part of an id, or name."""

from __future__ import annotations

import re
import uuid
from typing import Final

from aiagent.session.v1.session_pb2 import PermissionRequest, Session
from aiagent_client.cli.failures import FailedError, UsageError
from aiagent_client.cli.output import local_time, word
from aiagent_client.cli.text import one_line
from aiagent_client.client import Client

_PART: Final = re.compile(r"[0-9a-fA-F-]{4,35}")
# How many sessions, the newest first, are looked through for a part of an id or a name.
_SEARCHED: Final = 5_000


def is_id(text: str) -> bool:
    """Returns whether the text is a whole id."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


async def session_id(client: Client, text: str) -> str:
    """Returns the id of the session that is meant.

    Raises FailedError when there is none, UsageError when there are several.
    """
    text = text.strip()
    if is_id(text):
        return text.lower()
    if not text:
        raise UsageError("name a session")
    found: dict[str, str] = {}
    seen = 0
    async for session in client.sessions.list(page_size=1000):
        if session.name == text or _matches(session.id, text):
            state = word(Session.State, session.state).plain
            found[session.id] = (
                f"{one_line(session.name, 40)}  {state}, created {local_time(session.create_time)}".strip()
            )
        seen += 1
        if seen >= _SEARCHED:
            break
    return _only(found, f"session {text!r}")


async def pending_request(client: Client, session: str, text: str) -> PermissionRequest:
    """Returns the open question that is meant; the only one of the session if nothing was named.

    Raises FailedError when there is none, UsageError when there are several.
    """
    requests = {
        request.id: request
        async for request in client.permissions.list(session, states=[PermissionRequest.PENDING])
    }
    matching = {
        key: request.tool_use.tool_name
        for key, request in requests.items()
        if not text or key == text.lower() or _matches(key, text)
    }
    return requests[_only(matching, f"open question {text!r}" if text else "open question")]


def _matches(whole: str, part: str) -> bool:
    return bool(_PART.fullmatch(part)) and (whole.startswith(part.lower()) or whole.endswith(part.lower()))


def _only(found: dict[str, str], what: str) -> str:
    if not found:
        raise FailedError(f"there is no {what}")
    if len(found) > 1:
        shown = "\n".join(f"  {key}  {name}".rstrip() for key, name in list(found.items())[:10])
        raise UsageError(f"{len(found)} match {what}; name one of them:\n{shown}")
    return next(iter(found))
