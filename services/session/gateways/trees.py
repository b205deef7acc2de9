"""Walks directories whose owner is hostile: by descriptor, following no link, with few of them open at once.

An agent owns its workspace. It may have put links where directories were, made directories deeper than a stack, named
pipes that block whoever opens them, and it may change all of that while it is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from services.session.domain.errors import invalid_request

MAX_DEPTH = 200
"""Directories below each other that are walked."""
_MAX_NAME = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a directory.

    Attributes:
        parts: Its path below the root of the walk.
        status: What it is; never of what a link leads to.
        directory: Descriptor of the directory it is in, open until the walk goes on.
    """

    parts: Parts
    status: os.stat_result
    directory: int

    @property
    def path(self) -> str:
        """The path, with slashes."""
        return "/".join(self.parts)


def open_root(path: str) -> int:
    """Opens a directory to walk below it.

    Raises:
        OSError: It is not there, or is no directory.
    """
    return os.open(path, _DIRECTORY)


def split(path: str) -> Parts:
    """Splits a path that a client sent.

    Raises:
        ServiceError: INVALID_ARGUMENT for `path`: it leads out.
    """
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or ".." in parts:
        raise invalid_request("path", "must stay in the workspace")
    if len(parts) > MAX_DEPTH:
        raise invalid_request("path", f"may name at most {MAX_DEPTH} directories")
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        raise invalid_request("path", f"may hold names of at most {_MAX_NAME} bytes")
    return parts


def descend(root: int, parts: Sequence[str], *, create: bool = False, made: list[Parts] | None = None) -> int:
    """Opens a directory below another.

    Args:
        root: Descriptor of the directory to begin at.
        parts: The directories, one below the other.
        create: Whether to make those that are missing.
        made: Where those that were made are noted.

    Returns:
        A descriptor; the caller closes it.

    Raises:
        OSError: One of them is not there, or is no directory, or a link.
    """
    here = os.dup(root)
    for depth, part in enumerate(parts):
        try:
            if create and not _is_there(here, part):
                os.mkdir(part, 0o755, dir_fd=here)
                if made is not None:
                    made.append(tuple(parts[: depth + 1]))
            below = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def names_in(directory: int) -> list[str]:
    """The names in a directory, sorted."""
    with os.scandir(directory) as found:
        return sorted(entry.name for entry in found)


def _is_there(directory: int, name: str) -> bool:
    return status_of(directory, name) is not None


def status_of(directory: int, name: str) -> os.stat_result | None:
    """What an entry is; None when it is not there."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def open_file(directory: int, name: str) -> int | None:
    """Opens a regular file; None when there is none any more."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=directory)
    except OSError:
        # Gone, replaced by a link, or not to be read: what is there now is no file to hand out.
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def walk(root: int) -> Iterator[Entry]:
    """Yields everything below a directory, directories before what is in them.

    What vanishes while it is looked for is left out.

    Raises:
        ServiceError: INVALID_ARGUMENT for `path`: directories lie too deep.
    """
    pending: list[Parts] = [()]
    while pending:
        parts = pending.pop()
        try:
            directory = descend(root, parts)
        except OSError:
            continue
        try:
            below = []
            for name in names_in(directory):
                status = status_of(directory, name)
                if status is None:
                    continue
                entry = Entry((*parts, name), status, directory)
                if stat.S_ISDIR(status.st_mode):
                    if len(entry.parts) > MAX_DEPTH:
                        raise invalid_request("path", f"holds directories more than {MAX_DEPTH} deep")
                    below.append(entry.parts)
                yield entry
            pending += reversed(below)
        finally:
            os.close(directory)


def size_of(root: int) -> int:
    """Bytes of all regular files below a directory."""
    return sum(entry.status.st_size for entry in walk(root) if stat.S_ISREG(entry.status.st_mode))


def erase(directory: int) -> None:
    """Removes everything in a directory, however deep: directories are pulled up, none is descended into.

    Raises:
        OSError: Something cannot be removed.
    """
    while names := names_in(directory):
        for name in names:
            _erase_entry(directory, name)


def _erase_entry(directory: int, name: str) -> None:
    status = status_of(directory, name)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        _unlink(directory, name)
        return
    below = _open_whatever_its_mode(directory, name)
    try:
        for inner in names_in(below):
            found = status_of(below, inner)
            if found is not None and stat.S_ISDIR(found.st_mode):
                _make_mine(below, inner, found)
                os.rename(inner, uuid4().hex, src_dir_fd=below, dst_dir_fd=directory)
            else:
                _unlink(below, inner)
        os.rmdir(name, dir_fd=directory)
    finally:
        os.close(below)


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        # Somebody else removes it too.
        return


def _open_whatever_its_mode(directory: int, name: str) -> int:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    _make_mine(directory, name, status)
    return os.open(name, _DIRECTORY, dir_fd=directory)


def _make_mine(directory: int, name: str, status: os.stat_result) -> None:
    """Gives a directory the rights that it takes to empty and to move it; an agent may have taken them away."""
    if status.st_mode & stat.S_IRWXU == stat.S_IRWXU:
        return
    held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        Path(f"/proc/self/fd/{held}").chmod(stat.S_IRWXU)
    finally:
        os.close(held)
