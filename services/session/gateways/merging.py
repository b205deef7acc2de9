"""Moves a directory's content into a workspace: all of it, or nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import structlog

from services.session.domain.errors import archive_invalid, invalid_request
from services.session.gateways.trees import Parts, descend, names_in, status_of

_log = structlog.get_logger(__name__)
# Something came to lie in the way after it was looked at: an agent's processes may outlive its turn.
_IN_THE_WAY = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
# Not every file system has links, and not every file may be linked by who does not own it.
_NO_LINK = frozenset({errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def merge(source: int, root: int, at: Parts, aside: int) -> None:
    """Moves what is in one directory into another, whose files it replaces; checks all of it before it moves anything.

    What fails in the middle is undone. A death of the process is not: it leaves a part of the files moved, each of them
    whole. (Where files cannot be linked, the one under way may lie in `aside` only.)

    Args:
        source: Descriptor of a directory that nobody else changes.
        root: Descriptor of the directory to merge into.
        at: Where below `root`; made if it is missing.
        aside: Descriptor of an empty directory in the same file system, for what was replaced.

    Raises:
        ServiceError: INVALID_ARGUMENT for `path`, or with ARCHIVE_INVALID: something is in the way.
        OSError: It cannot be moved; the directory is as it was.
    """
    moves = list(_plan(source, root, at))
    parts: Parts = at
    merging = _Merging(source, root, at, aside)
    try:
        for parts in moves:
            merging.move(parts)
    except BaseException as error:
        merging.undo()
        if isinstance(error, OSError) and error.errno in _IN_THE_WAY:
            raise archive_invalid("something came in the way while it was moved", "/".join(parts)) from error
        raise


class _Merging:
    """What has been done of a merge, and how to undo it."""

    def __init__(self, source: int, root: int, at: Parts, aside: int) -> None:
        self._source = source
        self._root = root
        self._at = at
        self._aside = aside
        self._made: list[Parts] = []
        self._moved: list[tuple[Parts, str | None]] = []

    def move(self, parts: Parts) -> None:
        """Moves an entry into its place, over the file that is there."""
        name, kept = parts[-1], str(len(self._moved))
        below = descend(self._source, parts[:-1])
        try:
            target = descend(self._root, (*self._at, *parts[:-1]), create=True, made=self._made)
            try:
                replaces = status_of(target, name) is not None
                # Noted before: to undo what was not done changes nothing.
                self._moved.append((parts, kept if replaces else None))
                if replaces:
                    self._keep(target, name, kept)
                os.rename(name, name, src_dir_fd=below, dst_dir_fd=target)
            finally:
                os.close(target)
        finally:
            os.close(below)

    def _keep(self, target: int, name: str, kept: str) -> None:
        try:
            os.link(name, kept, src_dir_fd=target, dst_dir_fd=self._aside, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            os.rename(name, kept, src_dir_fd=target, dst_dir_fd=self._aside)

    def undo(self) -> None:
        """Puts back what was there, and takes away what was not."""
        for parts, kept in reversed(self._moved):
            try:
                self._move_back(parts, kept)
            except OSError as error:
                _log.error("an upload that failed has left a file", error=error.strerror)
        for made in reversed(self._made):
            try:
                above = descend(self._root, made[:-1])
                try:
                    os.rmdir(made[-1], dir_fd=above)
                finally:
                    os.close(above)
            except OSError as error:
                _log.error("an upload that failed has left a directory", error=error.strerror)

    def _move_back(self, parts: Parts, kept: str | None) -> None:
        name = parts[-1]
        below, target = descend(self._source, parts[:-1]), -1
        try:
            target = descend(self._root, (*self._at, *parts[:-1]))
            if kept is not None:
                if status_of(self._aside, kept) is not None:
                    os.rename(kept, name, src_dir_fd=self._aside, dst_dir_fd=target)
            elif status_of(below, name) is None:
                os.rename(name, name, src_dir_fd=target, dst_dir_fd=below)
        finally:
            os.close(below)
            if target >= 0:
                os.close(target)


def _plan(source: int, root: int, at: Parts) -> Iterator[Parts]:
    """What has to be renamed: files, and directories that are not there yet."""
    if not _free(root, at):
        pending: list[Parts] = [()]
    else:
        yield from ((name,) for name in names_in(source))
        return
    while pending:
        parts = pending.pop()
        below, target = descend(source, parts), descend(root, (*at, *parts))
        try:
            for name in names_in(below):
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
