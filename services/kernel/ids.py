"""Identifiers: UUIDv7, so that rows written one after the other lie one after the other."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from uuid_utils import compat


def new_id() -> UUID:
    """Returns a UUIDv7; ids of one process ascend."""
    return compat.uuid7()


class IdSource(Protocol):
    """Where new ids come from; tests give predictable ones."""

    def new_id(self) -> UUID:
        """Returns an id that was never returned before."""
        ...


class Uuid7Source:
    """The real IdSource."""

    def new_id(self) -> UUID:
        """See IdSource."""
        return new_id()
