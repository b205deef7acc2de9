"""Where the wheels that carry servers have put them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deploy.local.state import LocalError


def package(name: str) -> Path:
    """The directory of an installed package, which is not imported: its programs are wanted, not its code.

    Raises:
        LocalError: It is not installed.
    """
    found = find_spec(name)
    if found is None or found.origin is None:
        raise LocalError(f"{name} is not installed; `make env-run` does it")
    return Path(found.origin).parent
