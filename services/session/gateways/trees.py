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

from services.session.domain.errors import archive_invalid, invalid_request

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


def descend(root: int, parts: Sequence[str], *, create: bool = False) -> int:
    """Opens a directory below another.

    Args:
        root: Descriptor of the directory to begin at.
        parts: The directories, one below the other.
        create: Whether to make those that are missing.

    Returns:
        A descriptor; the caller closes it.

    Raises:
        OSError: One of them is not there, or is no directory, or a link.
    """
    here = os.dup(root)
    for part in parts:
        try:
            if create and not _is_there(here, part):
                os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _names(directory: int) -> list[str]:
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
            for name in _names(directory):
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


def merge(source: int, root: int, at: Parts) -> None:
    """Moves what is in one directory into another, whose files it replaces; checks all of it before it moves anything.

    Args:
        source: Descriptor of a directory that nobody else changes.
        root: Descriptor of the directory to merge into.
        at: Where below `root`; made if it is missing.

    Raises:
        ServiceError: INVALID_ARGUMENT for `path`, or with ARCHIVE_INVALID: something is in the way.
    """
    moves = list(_plan(source, root, at))
    for parts in moves:
        below = descend(source, parts[:-1])
        try:
            target = descend(root, (*at, *parts[:-1]), create=True)
            try:
                os.rename(parts[-1], parts[-1], src_dir_fd=below, dst_dir_fd=target)
            finally:
                os.close(target)
        finally:
            os.close(below)


def _plan(source: int, root: int, at: Parts) -> Iterator[Parts]:
    """What has to be renamed: files, and directories that are not there yet."""
    if not _free(root, at):
        pending: list[Parts] = [()]
    else:
        yield from ((name,) for name in _names(source))
        return
    while pending:
        parts = pending.pop()
        below, target = descend(source, parts), descend(root, (*at, *parts))
        try:
            for name in _names(below):
                there = status_of(target, name)
                is_directory = stat.S_ISDIR(os.stat(name, dir_fd=below, follow_symlinks=False).st_mode)
                if there is not None and stat.S_ISDIR(there.st_mode) != is_directory:
                    raise archive_invalid(
                        "a directory has the name of something that is none", "/".join((*parts, name))
                    )
                if there is not None and is_directory:
                    pending.append((*parts, name))
                else:
                    yield (*parts, name)
        finally:
            os.close(below)
            os.close(target)


def _free(root: int, at: Parts) -> bool:
    """Whether the directory `at` is still to be made."""
    for depth in range(len(at)):
        try:
            here = descend(root, at[:depth])
        except OSError:
            raise invalid_request("path", "is no directory of the workspace") from None
        try:
            there = status_of(here, at[depth])
        finally:
            os.close(here)
        if there is None:
            return True
        if not stat.S_ISDIR(there.st_mode):
            raise invalid_request("path", "is no directory of the workspace")
    return False


def erase(directory: int) -> None:
    """Removes everything in a directory, however deep: directories are pulled up, none is descended into.

    Raises:
        OSError: Something cannot be removed.
    """
    while names := _names(directory):
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
        for inner in _names(below):
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
