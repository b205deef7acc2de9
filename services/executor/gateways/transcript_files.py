"""A conversation as the CLI keeps it on disk, in its session's home.

The agent can write there, and put links and pipes in the way: every step is made by descriptor, and follows nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
from claude_agent_sdk import project_key_for_directory

from services.executor.domain.transcripts import METADATA, Entry, Namer

_log = structlog.get_logger(__name__)
MAX_BYTES = 64 * 1024 * 1024
"""What is read of one conversation at most."""
_SUBPATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def is_subpath(text: str) -> bool:
    """Whether it can name a subagent's transcript."""
    return _SUBPATH.fullmatch(text) is not None


class TranscriptFiles:
    """The files of one conversation."""

    def __init__(self, home: Path, workspace: Path, cli_session_id: str) -> None:
        """Args: home: the session's; workspace: where its CLI runs; cli_session_id: the conversation."""
        self._home = home
        self._steps = (".claude", "projects", project_key_for_directory(str(workspace)))
        self._name = cli_session_id

    def read(self, *, trim: bool = False) -> dict[str, list[Entry]]:
        """Reads all transcripts of the conversation, by subpath; of an unreadable line it keeps nothing.

        Args:
            trim: Whether to cut off what follows the last whole line, before a CLI goes on writing behind it.
        """
        found: dict[str, list[Entry]] = {}
        left = MAX_BYTES
        with suppress(FileNotFoundError, NotADirectoryError), self._project(make=False) as project:
            with suppress(OSError):
                data = _contents(f"{self._name}.jsonl", project, left, trim=trim)
                left -= len(data)
                found[""] = _entries(data)
            for folder, _, names, descriptor in os.fwalk(self._name, dir_fd=project):
                inside = folder[len(self._name) + 1 :]
                for name in sorted(names):
                    subpath = "/".join(filter(None, (inside, name.removesuffix(".jsonl"))))
                    if not name.endswith(".jsonl") or not inside or not is_subpath(subpath):
                        continue
                    with suppress(OSError):
                        data = _contents(name, descriptor, left, trim=trim)
                        left -= len(data)
                        found[subpath] = [
                            *_entries(data),
                            *_metadata(name.removesuffix(".jsonl"), descriptor),
                        ]
        return found

    def replace(self, transcripts: Mapping[str, Sequence[Entry]]) -> None:
        """Puts these transcripts in the place of whatever is there, each of them atomically."""
        with self._project(make=True) as project:
            with suppress(OSError):
                shutil.rmtree(self._name, dir_fd=project)
            for subpath, entries in transcripts.items():
                if not subpath:
                    _put(f"{self._name}.jsonl", project, entries)
                elif is_subpath(subpath):
                    *folders, name = (self._name, *subpath.split("/"))
                    with _descend(project, folders, make=True) as folder:
                        lines = [entry for entry in entries if entry.kind != METADATA]
                        _put(f"{name}.jsonl", folder, lines)
                        _put_metadata(name, folder, entries)

    @contextmanager
    def _project(self, *, make: bool) -> Iterator[int]:
        root = os.open(self._home, _DIRECTORY)
        try:
            with _descend(root, self._steps, make=make) as descriptor:
                yield descriptor
        finally:
            os.close(root)


@contextmanager
def _descend(start: int, steps: Sequence[str], *, make: bool) -> Iterator[int]:
    current = os.dup(start)
    try:
        for step in steps:
            if make:
                _make_folder(step, current)
            below = os.open(step, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _make_folder(name: str, folder: int) -> None:
    """Makes a directory unless it is there; a link or a file in its place is taken away."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return
        os.unlink(name, dir_fd=folder)
    os.mkdir(name, 0o700, dir_fd=folder)


def _contents(name: str, folder: int, limit: int, *, trim: bool = False) -> bytes:
    """Reads the whole lines of a regular file.

    Raises:
        OSError: It is no such file, or too large.
    """
    with os.fdopen(os.open(name, _READ, dir_fd=folder), "r+b") as file:
        seen = os.fstat(file.fileno())
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > limit:
            raise OSError(f"{name} is no transcript")
        data = file.read(limit)
        whole = data.rfind(b"\n") + 1
        if trim and whole < len(data):
            file.truncate(whole)
        return data[:whole]


def _entries(data: bytes) -> list[Entry]:
    namer = Namer()
    entries = []
    for line in data.splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            entries.append(namer.name(content))
    return entries


def _metadata(name: str, folder: int) -> list[Entry]:
    """What lies beside a subagent's transcript, as the CLI would report it."""
    try:
        descriptor = os.open(f"{name}.meta.json", _READ, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return []
            content = json.loads(file.read(1024 * 1024))
    except (OSError, ValueError, RecursionError):
        return []
    return [Namer().name({"type": METADATA, **content})] if isinstance(content, dict) else []


def _put(name: str, folder: int, entries: Sequence[Entry]) -> None:
    _put_text(name, folder, "".join(f"{entry.json}\n" for entry in entries))


def _put_metadata(name: str, folder: int, entries: Sequence[Entry]) -> None:
    described = [entry for entry in entries if entry.kind == METADATA]
    if described:
        content = json.loads(described[-1].json)
        _put_text(
            f"{name}.meta.json",
            folder,
            json.dumps({key: value for key, value in content.items() if key != "type"}),
        )


def _put_text(name: str, folder: int, text: str) -> None:
    draft = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=folder)
    with os.fdopen(os.open(draft, _WRITE, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
