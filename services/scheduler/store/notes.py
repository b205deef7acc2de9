"""What transactions note for `Database.on_commit`: the commit wakes whom it concerns in the same process.

A note is a hint, lost with its process. Whoever waits for one looks by itself, too.
"""

from __future__ import annotations

from typing import Final

SCHEDULES_CHANGED: Final = "schedules"
"""A schedule or a backfill may be due sooner than it was."""
RUNS_CHANGED: Final = "runs changed"
"""A run has a new version, or is gone."""
