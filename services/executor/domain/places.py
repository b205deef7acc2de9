"""How the places for live agents are shared out."""

from __future__ import annotations

from typing import Final

_KEPT: Final = 4
"""One place of so many is kept."""


def background_places(places: int) -> int:
    """How many turns of sessions in the background may run at once, on so many places.

    Nobody waits for those at a screen, and some of them last for days. A quarter of the places, and one at least where
    there is more than one, is kept for interactive turns, which may take all.
    """
    return max(1, places - max(1, places // _KEPT))
