"""Paths as permission rules see them: lexical, absolute, in one spelling. No disk is looked at here."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

MAX_PATH_CHARACTERS = 4096
"""PATH_MAX of Linux: a longer path names no file."""
MAX_PATH_PARTS = 256
"""A deeper path is not looked into."""
_WILDCARD = re.compile(r"[*?]")


def normal(path: str, base: str) -> str:
    """Writes a path in its one absolute spelling: no `.`, no `..`, no doubled and no leading `//`.

    POSIX lets two leading slashes mean something of their own, and `normpath` keeps them; Linux does not.
    """
    joined = path if path.startswith("/") else f"{base}/{path}"
    return posixpath.normpath("/" + joined.lstrip("/"))


def within(path: str, directory: str) -> bool:
    """Whether a normal path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a rule's path pattern, if anything."""
    parts = pattern.split("/")
    for index, part in enumerate(parts):
        if part == ".." and _WILDCARD.search("/".join(parts[:index])):
            return "a path has no .. after a wildcard"
        if "**" in part.strip("*"):
            return "** stands alone between slashes, or begins or ends a name"
    return None


def absolute_pattern(pattern: str, workspace: str) -> str:
    """Writes a rule's path pattern absolute: `//x` and `/x` are absolute, everything else is below the workspace."""
    below = pattern.endswith("/")
    written = normal(pattern, workspace)
    return written.rstrip("/") + "/**" if below else written


def glob_matches(pattern: str, path: str) -> bool:
    """Matches a normal path: `**` crosses directories, `*` and `?` do not, nothing else is special."""
    return [*_states(pattern, path)][-1][-1]


def covers(pattern: str, path: str) -> bool:
    """Whether a pattern matches a normal path or a directory above it."""
    return any(states[-1] for states in _states(pattern, path))


def reaches(root: str, pattern: str) -> bool:
    """Whether a pattern may match the directory `root`, something below it or above it."""
    return any(states[-1] for states in _states(pattern, root)) or any([*_states(pattern, root)][-1])


def _states(pattern: str, path: str) -> Iterator[Sequence[bool]]:
    """Matches part by part: of each, the i-th state tells whether the path so far is the first i parts wanted."""
    wanted = _parts(pattern)
    states = [True, *[False] * len(wanted)]
    for part in path.split("/"):
        following = [False] * len(states)
        for index, glob in enumerate(wanted):
            if glob == "**":
                following[index + 1] = following[index] or states[index] or states[index + 1]
            else:
                following[index + 1] = states[index] and fnmatchcase(part, glob)
        states = following
        yield states


def _parts(pattern: str) -> list[str]:
    """The parts of a pattern: `**.md` is `**` and `*.md`, `docs**` is `docs*` and `**`."""
    parts: list[str] = []
    for part in pattern.split("/"):
        bare = part.strip("*")
        if not bare and "**" in part:
            parts.append("**")
            continue
        glob = re.sub(r"\*+", "*", part).replace("[", "[[]")
        parts += [
            *(["**"] if part.startswith("**") else []),
            glob,
            *(["**"] if part.endswith("**") else []),
        ]
    return parts
