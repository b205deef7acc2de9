"""Directories to archives and back. Nothing here runs on an event loop."""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Final

from aiagent_client.errors import ArchiveError

_PIECE: Final = 256 * 1024
_READ: Final = 1024 * 1024


@dataclass(slots=True)
class Packing:
    """A directory about to be packed: what goes in, what stays out and why.

    `size_bytes` is that of the files, uncompressed; `packed_bytes` how much of it has been read.
    """

    root: Path
    entries: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    file_count: int = 0
    size_bytes: int = 0
    packed_bytes: int = 0

    def pieces(self) -> Iterator[bytes]:
        """Yields the archive, tar.gz, in pieces. The same files give the same bytes. Raises ArchiveError."""
        self.packed_bytes = 0
        # 16 + 15: a gzip header, without name and time.
        compressor = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        pending = bytearray()
        for block in self._blocks():
            pending += compressor.compress(block)
            if len(pending) >= _PIECE:
                yield bytes(pending)
                pending.clear()
        pending += compressor.compress(bytes(2 * tarfile.BLOCKSIZE))
        pending += compressor.flush()
        yield bytes(pending)

    def _blocks(self) -> Iterator[bytes]:
        for name in self.entries:
            path = self.root / name
            try:
                found = path.lstat()
                header = tarfile.TarInfo(name)
                header.mtime = int(found.st_mtime)
                header.mode = stat.S_IMODE(found.st_mode) & 0o777
                if stat.S_ISLNK(found.st_mode):
                    header.type = tarfile.SYMTYPE
                    header.linkname = str(path.readlink())
                    yield _header(header)
                elif stat.S_ISDIR(found.st_mode):
                    header.type = tarfile.DIRTYPE
                    yield _header(header)
                elif stat.S_ISREG(found.st_mode):
                    yield from self._file(path, header)
            except OSError as error:
                raise ArchiveError(f"cannot read {path}: {error.strerror}") from error

    def _file(self, path: Path, header: tarfile.TarInfo) -> Iterator[bytes]:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            header.size = os.fstat(file.fileno()).st_size
            yield _header(header)
            left = header.size
            while left:
                # A file that shrinks meanwhile is filled up, one that grows is cut: the header is already out.
                block = file.read(min(_READ, left)) or bytes(min(_READ, left))
                left -= len(block)
                self.packed_bytes += len(block)
                yield block
        if header.size % tarfile.BLOCKSIZE:
            yield bytes(tarfile.BLOCKSIZE - header.size % tarfile.BLOCKSIZE)


PRIVATE: Final = frozenset(
    {
        *(".aiagent", ".env", ".env.local", ".netrc", ".npmrc", ".pypirc", ".ssh", ".aws"),
        *(".venv", "node_modules"),
    }
)
"""Names that are left out unless they are asked for: secrets an agent has no use for, and what a build brings back."""


def scan(root: Path, exclude: Sequence[str] = (), *, everything: bool = False) -> Packing:
    """Lists what of a directory can be sent.

    Left out is what `exclude` names (patterns as `.git` or `build/*.o`, on a name or on a path below the directory),
    what a workspace does not take (sockets, devices, links that lead out of the directory), the state of a suite
    on this machine, whatever it is called, and, unless `everything` is asked for, what git ignores and the names in
    `PRIVATE`. Raises ArchiveError when the directory cannot be read.
    """
    if not root.is_dir():
        raise ArchiveError(f"not a directory: {root}")
    packing = Packing(root=root.resolve())

    def fail(error: OSError) -> None:
        raise ArchiveError(f"cannot read {error.filename}: {error.strerror}") from error

    ignored = set() if everything else _ignored_by_git(packing.root)

    def left_out(relative: Path) -> bool:
        reason = ""
        if _is_state_directory(packing.root / relative):
            reason = "it holds the secrets of a running suite"
        elif not everything and relative.name in PRIVATE:
            reason = "it is private, or made by a build"
        elif relative.as_posix() in ignored:
            reason = "git ignores it"
        if reason:
            packing.skipped.append((relative.as_posix(), reason))
        return bool(reason)

    if _is_state_directory(packing.root):
        raise ArchiveError(f"{root} holds the secrets of a running suite; it is sent to no agent")
    for directory, directories, files in os.walk(packing.root, onerror=fail):
        base = Path(directory).relative_to(packing.root)
        kept = [name for name in sorted(directories) if not _excluded(base / name, exclude)]
        directories[:] = [name for name in kept if not left_out(base / name)]
        kept = [name for name in sorted(files) if not _excluded(base / name, exclude)]
        for name in [*directories, *(name for name in kept if not left_out(base / name))]:
            _scan_entry(packing, base / name)
    return packing


def _is_state_directory(path: Path) -> bool:
    return (path / "secrets.json").is_file() and (path / "admin-password").is_file()


def _ignored_by_git(root: Path) -> set[str]:
    """What git ignores below a directory; nothing where there is no git, or no repository."""
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--others",
        "--ignored",
        "--exclude-standard",
        "--directory",
    ]
    try:
        found = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return set()
    return {os.fsdecode(name).rstrip("/") for name in found.stdout.split(b"\0") if name}


def _scan_entry(packing: Packing, relative: Path) -> None:
    path = packing.root / relative
    name = relative.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        packing.skipped.append((ascii(name), "its name is not UTF-8"))
        return
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            target = path.readlink()
            if target.is_absolute() or not _inside(packing.root, path.parent / target):
                packing.skipped.append((name, "the link leads out of the directory"))
                return
        elif stat.S_ISREG(found.st_mode):
            packing.file_count += 1
            packing.size_bytes += found.st_size
        elif not stat.S_ISDIR(found.st_mode):
            packing.skipped.append((name, "neither a file nor a directory"))
            return
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from error
    packing.entries.append(name)


def _excluded(relative: Path, patterns: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(relative.name, pattern.rstrip("/"))
        or fnmatch.fnmatchcase(relative.as_posix(), pattern.rstrip("/"))
        for pattern in patterns
    )


def _inside(root: Path, path: Path) -> bool:
    # Both readings of `..`: of the text, as an archive's reader checks it, and of the file system.
    return all(Path(read(path)).is_relative_to(root) for read in (os.path.normpath, os.path.realpath))


def _header(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


@dataclass(frozen=True, slots=True)
class Extracted:
    """What came out of an archive; `size_bytes` is that of the files, `skipped` what was left out and why."""

    file_count: int
    size_bytes: int
    skipped: tuple[tuple[str, str], ...] = ()


def extract(archive: IO[bytes], directory: Path, *, max_bytes: int) -> Extracted:
    """Extracts a tar.gz into a directory; files of the same name are replaced.

    Only regular files, directories and links that stay inside are taken: an agent wrote what is in there. Links that
    lead out are left out, and told; no other entry leads out of the directory, not through a link that is already there
    either. Raises ArchiveError; what was extracted before the bad entry stays.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root = directory.resolve()
    links: list[tarfile.TarInfo] = []
    count = size = 0
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for member in tar:
                path = _place(root, member.name)
                if member.isdir():
                    _make_directories(root, path)
                elif member.issym():
                    # Links come last, so that no entry is written through one.
                    links.append(member)
                elif member.isreg():
                    size += member.size
                    if size > max_bytes:
                        raise ArchiveError(f"the archive holds more than {max_bytes} bytes")
                    count += 1
                    _extract_file(tar, member, root, path)
                else:
                    raise ArchiveError(f"the archive holds something that is no file: {member.name!r}")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ArchiveError(f"the archive is broken: {error}") from error
    except OSError as error:
        raise ArchiveError(f"cannot extract into {root}: {error.strerror or error}") from error
    skipped = [
        (link.name, "the link leads out of the directory") for link in links if not _extract_link(link, root)
    ]
    return Extracted(file_count=count, size_bytes=size, skipped=tuple(skipped))


def _place(root: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name or ("\\" in name and os.name == "nt"):
        raise ArchiveError(f"the archive holds an entry that leads out of the directory: {name!r}")
    return root.joinpath(*relative.parts)


def _make_directories(root: Path, path: Path) -> None:
    current = root
    for part in path.relative_to(root).parts:
        current /= part
        if current.is_symlink():
            raise ArchiveError(f"a link is in the way: {current}")
        current.mkdir(exist_ok=True)


def _extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, path: Path) -> None:
    _make_directories(root, path.parent)
    path.unlink(missing_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise ArchiveError(f"the archive is broken: {member.name!r} has no content")
    # O_EXCL follows no link, whoever put it there in the meantime.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with source, os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(source, target, _READ)
    if member.mode & 0o100:
        path.chmod(path.stat().st_mode | 0o111 & ~_umask())
    os.utime(path, (member.mtime, member.mtime))


def _extract_link(member: tarfile.TarInfo, root: Path) -> bool:
    path = _place(root, member.name)
    target = PurePosixPath(member.linkname)
    if target.is_absolute() or not _inside(root, path.parent / target):
        return False
    try:
        _make_directories(root, path.parent)
        path.unlink(missing_ok=True)
        path.symlink_to(member.linkname)
    except OSError as error:
        raise ArchiveError(f"cannot extract {member.name!r}: {error.strerror}") from error
    return True


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
