"""Workspaces, against a real directory that an agent has filled with traps."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.kernel.errors import ServiceError
from services.session.gateways.workspaces import Workspaces
from tests.contract.session.hostile_archives import link, refused, tar

pytestmark = pytest.mark.contract
LIMIT = 4 * 1024 * 1024
SECRET = b"the host's secret"
HOSTILE = dict(refused())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Workspaces]:
    made = Workspaces(tmp_path / "workspaces", LIMIT)
    yield made
    made.close()


@pytest.fixture
async def session_id(store: Workspaces) -> UUID:
    made = uuid4()
    await store.create(made)
    return made


@pytest.fixture
def here(store: Workspaces, session_id: UUID) -> Path:
    return Path(store.path(session_id))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    return outside


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


async def upload(store: Workspaces, session_id: UUID, data: bytes, path: str = "") -> None:
    async with store.staged(pieces(data)) as staged:
        await store.merge(session_id, staged, path)


async def download(store: Workspaces, session_id: UUID, path: str = "", kind: str = "TAR_GZ") -> bytes:
    return b"".join([piece async for piece in store.archive(session_id, path, kind)])


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {member.name: member for member in opened}


def content(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        file = opened.extractfile(name)
        assert file is not None
        return file.read()


def content_of_all(archive: bytes) -> bytes:
    return gzip.decompress(archive)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def leftovers(store: Workspaces, session_id: UUID) -> list[str]:
    root = Path(store.path(session_id)).parent
    return [found.name for found in root.iterdir() if found.name != str(session_id)]


async def test_a_workspace_is_its_owners_only(here: Path) -> None:
    assert stat.S_IMODE(here.stat().st_mode) == 0o700


async def test_what_goes_in_comes_out(store: Workspaces, session_id: UUID, here: Path) -> None:
    await upload(
        store, session_id, tar(("a/b.txt", b"b"), ("run", b"#!", {"mode": 0o755}), link("l", "a/b.txt"))
    )
    (here / "empty").mkdir()
    (here / os.fsdecode(b"not\xffutf8")).write_bytes(b"n")
    (here / "large").write_bytes(os.urandom(2_000_000))

    packed = await download(store, session_id)
    found = members(packed)
    assert set(found) == {"a", "a/b.txt", "run", "l", "empty", os.fsdecode(b"not\xffutf8"), "large"}
    assert content(packed, "large") == (here / "large").read_bytes()
    assert found["run"].mode & 0o111
    assert found["l"].linkname == "a/b.txt"

    with zipfile.ZipFile(io.BytesIO(await download(store, session_id, kind="ZIP"))) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {"a/", "a/b.txt", "run", "l", "empty/", "not\ufffdutf8", "large"}
        assert stat.S_ISLNK(archive.getinfo("l").external_attr >> 16)

    other = uuid4()
    await store.create(other)
    await upload(store, other, packed)
    assert members(await download(store, other)).keys() == found.keys()
    assert leftovers(store, session_id) == [str(other)]


async def test_a_part_can_be_downloaded(store: Workspaces, session_id: UUID) -> None:
    await upload(store, session_id, tar(("a/b/c.txt", b"c"), ("a/d.txt", b"d"), ("e", b"e")))
    assert set(members(await download(store, session_id, "a"))) == {"b", "b/c.txt", "d.txt"}
    assert set(members(await download(store, session_id, "/a/b/".strip("/")))) == {"c.txt"}
    assert set(members(await download(store, session_id, "a/d.txt"))) == {"d.txt"}
    for path in ("x", "a/x", "e/x", "..", "a/../e", "/etc", "x" * 1000):
        with pytest.raises(ServiceError) as refusal:
            await download(store, session_id, path)
        assert refusal.value.violations[0].field == "path"


async def test_downloads_follow_no_link(
    store: Workspaces, session_id: UUID, here: Path, secret: Path
) -> None:
    (here / "file").symlink_to(secret / "secret")
    (here / "directory").symlink_to(secret)
    (here / "loop").symlink_to("loop")
    os.mkfifo(here / "pipe")
    (here / "fine").write_bytes(b"fine")
    for kind in ("TAR_GZ", "ZIP"):
        async with asyncio.timeout(10):
            assert SECRET not in await download(store, session_id, kind=kind)
    found = members(await download(store, session_id))
    assert set(found) == {"file", "directory", "loop", "fine"}
    assert all(found[name].issym() for name in ("file", "directory", "loop"))
    for path in ("file", "directory", "directory/secret", "pipe"):
        with pytest.raises(ServiceError) as refusal:
            await download(store, session_id, path)
        assert refusal.value.reason == "INVALID_REQUEST"


async def test_uploads_follow_no_link(store: Workspaces, session_id: UUID, here: Path, secret: Path) -> None:
    (here / "out").symlink_to(secret)
    for archive, path in (
        (tar(("x", b"x")), "out"),
        (tar(("x", b"x")), "out/deeper"),
        (tar(("out/x", b"x")), ""),
    ):
        with pytest.raises(ServiceError):
            await upload(store, session_id, archive, path)
    # A link is replaced, not written through.
    (here / "secret").symlink_to(secret / "secret")
    await upload(store, session_id, tar(("secret", b"mine")))
    assert (here / "secret").read_bytes() == b"mine"
    assert not (here / "secret").is_symlink()
    assert {found.name: found.read_bytes() for found in secret.iterdir()} == {"secret": SECRET}


@pytest.mark.parametrize("name", ["parent", "cut short", "chain of links", "zip: parent", "device"])
async def test_all_of_an_archive_or_nothing(
    name: str, store: Workspaces, session_id: UUID, here: Path
) -> None:
    with pytest.raises(ServiceError):
        await upload(store, session_id, HOSTILE[name])
    assert list(here.iterdir()) == []
    assert leftovers(store, session_id) == []


async def test_nothing_moves_when_something_is_in_the_way(
    store: Workspaces, session_id: UUID, here: Path
) -> None:
    await upload(store, session_id, tar(("d/e/old", b"old"), ("z/file", b"file")))
    for archive in (tar(("a", b"a"), ("d/e", b"no directory")), tar(("a", b"a"), ("z/file/x", b"x"))):
        with pytest.raises(ServiceError) as refusal:
            await upload(store, session_id, archive)
        assert refusal.value.reason == "ARCHIVE_INVALID"
    with pytest.raises(ServiceError) as refusal:
        await upload(store, session_id, tar(("a", b"a")), "new/../..")
    assert refusal.value.violations[0].field == "path"
    assert sorted(found.name for found in here.rglob("*")) == ["d", "e", "file", "old", "z"]


async def test_uploads_merge(store: Workspaces, session_id: UUID, here: Path) -> None:
    await upload(store, session_id, tar(("d/a", b"1"), ("d/e/b", b"1")))
    await upload(store, session_id, tar(("d/a", b"2"), ("d/e/c", b"2"), ("f/g", b"2")))
    await upload(store, session_id, tar(("h", b"3")), "new/place")
    await upload(store, session_id, tar(("h", b"4"), ("i", b"4")), "new/place")
    assert {
        str(found.relative_to(here)): found.read_bytes() for found in here.rglob("*") if found.is_file()
    } == {
        "d/a": b"2",
        "d/e/b": b"1",
        "d/e/c": b"2",
        "f/g": b"2",
        "new/place/h": b"4",
        "new/place/i": b"4",
    }


def everything(here: Path) -> dict[str, tuple[int, str | bytes]]:
    """What is there: kind and rights, and content."""
    return {
        str(found.relative_to(here)): (
            found.lstat().st_mode,
            str(found.readlink()) if found.is_symlink() else found.read_bytes() if found.is_file() else "",
        )
        for found in here.rglob("*")
    }


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "STORAGE_FULL"),
        (errno.EACCES, None),
        (errno.ENOTDIR, "ARCHIVE_INVALID"),
        (errno.ELOOP, "ARCHIVE_INVALID"),
    ],
)
async def test_an_upload_that_fails_in_the_middle_changes_nothing(
    store: Workspaces, session_id: UUID, here: Path, monkeypatch: pytest.MonkeyPatch, linked, number, reason
) -> None:
    (here / "at" / "d").mkdir(parents=True)
    (here / "at" / "d" / "old").write_bytes(b"old")
    (here / "at" / "link").symlink_to("d/old")
    before = everything(here)
    archive = tar(("d/new", b"1"), ("d/old", b"2"), ("e/new", b"3"), ("link", b"4"), ("z", b"5"))
    rename, link = os.rename, os.link

    def failing(on: int) -> None:
        calls = iter(range(1000))

        def once(*names, **places) -> None:
            if next(calls) == on:
                raise OSError(number, "as a disk")
            rename(*names, **places)

        monkeypatch.setattr(os, "rename", once)

    if not linked:

        def refuse(*_names, **_places) -> None:
            raise PermissionError(errno.EPERM, "not yours")

        monkeypatch.setattr(os, "link", refuse)
    for on in range(5 if linked else 7):
        failing(on)
        with pytest.raises((OSError, ServiceError)) as raised:
            await upload(store, session_id, archive, "at")
        assert getattr(raised.value, "reason", None) == reason
        assert everything(here) == before
        # Nor are the directories made on the way to a new place left behind.
        failing(min(on, 3))
        with pytest.raises((OSError, ServiceError)):
            await upload(store, session_id, archive, "new/place")
        assert everything(here) == before
        assert leftovers(store, session_id) == []
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "link", link)
    await upload(store, session_id, archive, "at")
    assert (here / "at" / "d" / "old").read_bytes() == b"2"
    assert (here / "at" / "link").read_bytes() == b"4"
    assert leftovers(store, session_id) == []


async def test_a_workspace_has_a_limit(store: Workspaces, session_id: UUID, here: Path) -> None:
    await upload(store, session_id, tar(("a", bytes(3 * 1024 * 1024))))
    for data in (tar(("b", bytes(2 * 1024 * 1024))), os.urandom(LIMIT + 1)):
        with pytest.raises(ServiceError) as refusal:
            await upload(store, session_id, data)
        assert refusal.value.reason == "WORKSPACE_TOO_LARGE"
    with pytest.raises(ServiceError) as refusal:
        await upload(store, session_id, b"")
    assert refusal.value.reason == "ARCHIVE_INVALID"
    assert [found.name for found in here.iterdir()] == ["a"]
    assert leftovers(store, session_id) == []


async def test_an_upload_that_is_given_up_leaves_nothing(
    store: Workspaces, session_id: UUID, here: Path
) -> None:
    received = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield tar(("a", b"a"))
        received.set()
        await asyncio.Event().wait()

    async def receive() -> None:
        async with store.staged(endless()) as staged:
            await store.merge(session_id, staged, "")

    task = asyncio.create_task(receive())
    await received.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(store, session_id) == []
    assert list(here.iterdir()) == []


async def test_many_slow_readers_hold_up_nobody(store: Workspaces, session_id: UUID, here: Path) -> None:
    (here / "large").write_bytes(os.urandom(1_500_000))
    slow = [store.archive(session_id, "", "TAR_GZ") for _ in range(30)]
    for reader in slow:
        await anext(reader)
    async with asyncio.timeout(20):
        assert set(members(await download(store, session_id))) == {"large"}
    descriptors = open_descriptors()
    for reader in slow:
        await reader.aclose()
    assert open_descriptors() <= descriptors - 30


async def test_files_that_change_while_they_are_packed(
    store: Workspaces, session_id: UUID, here: Path
) -> None:
    for number in range(4):
        (here / f"{number}").write_bytes(os.urandom(600_000))
    reading = store.archive(session_id, "", "TAR_GZ")
    parts = [await anext(reading)]
    (here / "0").write_bytes(b"short")
    (here / "1").unlink()
    (here / "2").unlink()
    (here / "2").symlink_to("/etc/passwd")
    (here / "3").write_bytes(bytes(5_000_000))
    parts += [piece async for piece in reading]
    found = members(b"".join(parts))
    assert set(found) <= {"0", "1", "2", "3"}
    assert found["0"].size == 600_000
    assert found["2"].issym()
    assert Path("/etc/passwd").read_bytes() not in content_of_all(b"".join(parts))


async def test_what_an_agent_made_deep_can_still_be_deleted(
    store: Workspaces, session_id: UUID, here: Path, secret: Path
) -> None:
    directory = os.open(here, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deeper", dir_fd=directory)
        below = os.open("deeper", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.symlink(secret, "out", dir_fd=directory)
    os.close(directory)
    (here / "locked").mkdir()
    (here / "locked" / "inner").mkdir()
    (here / "locked" / "inner" / "file").write_bytes(b"x")
    (here / "locked" / "inner").chmod(0)
    (here / "locked").chmod(0)
    (here / "out").symlink_to(secret)

    with pytest.raises(ServiceError) as refusal:
        await download(store, session_id)
    assert refusal.value.violations[0].field == "path"
    await store.delete(session_id)
    assert not here.exists()
    assert leftovers(store, session_id) == []
    assert (secret / "secret").read_bytes() == SECRET
    # Again, and one that never was.
    await store.delete(session_id)
    await store.delete(uuid4())


async def test_a_start_removes_what_a_crash_has_left(store: Workspaces, session_id: UUID) -> None:
    root = Path(store.path(session_id)).parent
    (root / f".deleted-{uuid4()}" / "d").mkdir(parents=True)
    old, new = root / ".upload-old", root / ".upload-new"
    for place in (old, new):
        place.mkdir()
        (place / "archive").write_bytes(b"x")
    os.utime(old, (0, 0))
    await store.sweep()
    assert leftovers(store, session_id) == [".upload-new"]
