"""Transcripts: what a conversation's entries are called, and which of two copies of one is ahead. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

_NAMESPACE = UUID("5f0c5a1e-6a0f-5d0c-9a55-6f1d2b6f7a10")
_RESULT_OF = re.compile(r'"tool_use_id":\s*"([^"]{1,200})"')
LOCAL_ONLY = frozenset({"api-request", "api-request-blob", "api-request-shape", "cost-state"})
"""Lines that the CLI writes for itself and does not mirror."""
METADATA = "agent_metadata"
"""The kind of entry that stands for the file beside a subagent's transcript; the last one counts."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a transcript.

    Attributes:
        id: Its name in the store, a UUID.
        own: Whether that is the CLI's own, so that it is there in every copy of the conversation.
        kind: What the CLI calls it.
        json: Its text.
    """

    id: str
    own: bool
    kind: str
    json: str

    def answers(self) -> list[str]:
        """The tool calls whose results it holds."""
        return _RESULT_OF.findall(self.json) if self.kind == "user" else []


class Namer:
    """Names the entries of one transcript in their order.

    An entry without a UUID of its own is named by its content and by how often that came before, so that it has the
    same name wherever it is read: as the CLI reports it, in the file, and when it is sent again.
    """

    def __init__(self) -> None:
        """Begins with the transcript."""
        self._seen: Counter[str] = Counter()

    def name(self, content: Mapping[str, Any]) -> Entry:
        """Returns the next entry."""
        text = _text(content)
        kind = str(content.get("type") or "")
        uuid = content.get("uuid")
        if isinstance(uuid, str) and _is_uuid(uuid):
            return Entry(uuid.lower(), True, kind, text)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._seen[digest] += 1
        return Entry(str(uuid5(_NAMESPACE, f"{digest}:{self._seen[digest]}")), False, kind, text)


def missing_from_store(
    stored: Mapping[str, Sequence[Entry]], local: Mapping[str, Sequence[Entry]]
) -> dict[str, list[Entry]] | None:
    """Compares two copies of a conversation, each its transcripts by subpath.

    Returns:
        What the local copy has and the store has not, if the store's is the beginning of the local one in every
        transcript; None when it is not: then somebody else has gone on, and the store's copy is the conversation.
    """
    missing: dict[str, list[Entry]] = {}
    for subpath, entries in stored.items():
        known = _own(entries)
        if _own(local.get(subpath, ()))[: len(known)] != known:
            return None
    for subpath, entries in local.items():
        names = {entry.id for entry in stored.get(subpath, ())}
        new = [entry for entry in entries if entry.id not in names and entry.kind not in LOCAL_ONLY]
        if new:
            missing[subpath] = new
    return missing


def _own(entries: Sequence[Entry]) -> list[str]:
    """The UUIDs in order; of two entries with the same one the first counts, as in the store."""
    return list(dict.fromkeys(entry.id for entry in entries if entry.own))


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _text(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a character, as tool output has it: only an escape can say it.
        text = json.dumps(content, separators=(",", ":"))
    return text
