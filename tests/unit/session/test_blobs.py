"""A blob that was stored is there after a power cut: it is on the disk before its name is, its name before the row."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from services.kernel.errors import ErrorKind, ServiceError
from services.session.gateways.blobs import BlobStore


async def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ServiceError) as refusal:
        await BlobStore(f"file://{tmp_path}").put(uuid4(), uuid4(), b"text")
    assert (refusal.value.kind, refusal.value.reason) == (ErrorKind.RESOURCE_EXHAUSTED, "STORAGE_FULL")


class Disk:
    """Writes down what is synced and renamed, and by which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        self.threads: set[int] = set()
        sync, rename = os.fsync, Path.replace

        def fsync(descriptor: int) -> None:
            sync(descriptor)
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            size = "" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f" {os.fstat(descriptor).st_size}"
            self._note(f"sync{size}", path)

        def replace(source: Path, target: Path) -> Path:
            self._note("rename", str(target))
            return rename(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)

    def _note(self, what: str, path: str) -> None:
        self.done.append((what, path))
        self.threads.add(threading.get_ident())


async def test_a_blob_and_its_name_are_on_the_disk_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = BlobStore((tmp_path / "new" / "blobs").as_uri())
    session_id, content_id = uuid4(), uuid4()
    await store.put(session_id, content_id, b"x" * 1000)
    folder = tmp_path / "new" / "blobs" / str(session_id)
    assert disk.done == [
        # The directories that had to be made are named by those above them.
        ("sync", str(tmp_path)),
        ("sync", str(tmp_path / "new")),
        ("sync", str(tmp_path / "new" / "blobs")),
        ("sync 1000", str(folder / f"{content_id}.new")),
        ("rename", str(folder / str(content_id))),
        ("sync", str(folder)),
    ]
    assert threading.get_ident() not in disk.threads
    assert await store.get(session_id, content_id) == b"x" * 1000
    assert [entry.name for entry in folder.iterdir()] == [str(content_id)]


async def test_the_next_blob_of_a_session_syncs_no_more_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path.as_uri())
    session_id = uuid4()
    await store.put(session_id, uuid4(), b"first")
    disk = Disk(monkeypatch)
    await store.put(session_id, uuid4(), b"second")
    assert [what for what, _ in disk.done] == ["sync 6", "rename", "sync"]


async def test_what_a_dead_process_left_half_written_is_replaced(tmp_path: Path) -> None:
    store = BlobStore(tmp_path.as_uri())
    session_id, content_id = uuid4(), uuid4()
    (tmp_path / str(session_id)).mkdir()
    (tmp_path / str(session_id) / f"{content_id}.new").write_bytes(b"much longer than what follows")
    await store.put(session_id, content_id, b"whole")
    assert await store.get(session_id, content_id) == b"whole"


async def test_a_deleted_session_takes_its_blobs_along(tmp_path: Path) -> None:
    store = BlobStore(tmp_path.as_uri())
    session_id, content_id = uuid4(), uuid4()
    await store.put(session_id, content_id, b"text")
    await store.delete_session(session_id)
    await store.delete_session(session_id)
    with pytest.raises(ServiceError) as raised:
        async for _ in store.read(session_id, content_id):
            pass
    assert raised.value.reason == "CONTENT_NOT_FOUND"


async def test_another_store_than_the_local_one_is_written_by_its_own_means() -> None:
    store = BlobStore("memory://blobs")
    session_id, content_id = uuid4(), uuid4()
    await store.put(session_id, content_id, b"text")
    assert await store.get(session_id, content_id) == b"text"
