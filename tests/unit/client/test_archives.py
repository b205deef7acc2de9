"""Packing directories, and extracting what strangers packed."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import grpc
import pytest

from aiagent_client import ArchiveError, Client
from aiagent_client.archives import extract, scan
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.scripted_session import Fault

pytestmark = pytest.mark.unit


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for header, content in members:
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    made.seek(0)
    return made


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.mode = kind, target, mode
    return header


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "src" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref")
    (root / ".hidden").write_text("h")
    (root / "empty").mkdir()
    (root / "src" / "größe 🐘.txt").write_text("x" * 700)
    (root / "src" / "big.bin").write_bytes(os.urandom(3_000_000))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("src/big.bin")
    (root / "src" / "up").symlink_to("../run.sh")
    return root


def test_what_was_packed_is_what_comes_out(tree: Path, tmp_path: Path) -> None:
    packed = b"".join(scan(tree).pieces())
    out = tmp_path / "out"
    done = extract(io.BytesIO(packed), out, max_bytes=10**9)
    assert done.file_count == 5
    for path in tree.rglob("*"):
        twin = out / path.relative_to(tree)
        assert path.is_symlink() == twin.is_symlink()
        assert path.is_dir() == twin.is_dir()
        if path.is_file():
            assert path.read_bytes() == twin.read_bytes()
    assert os.access(out / "run.sh", os.X_OK)
    assert not os.access(out / ".hidden", os.X_OK)


def test_the_same_files_give_the_same_archive(tree: Path) -> None:
    assert b"".join(scan(tree).pieces()) == b"".join(scan(tree).pieces())


def test_what_a_workspace_does_not_take_is_left_out_and_named(tree: Path, tmp_path: Path) -> None:
    (tree / "absolute").symlink_to("/etc/passwd")
    (tree / "outside").symlink_to("../../etc")
    (tree / "loop").symlink_to("loop")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tree / "socket"))
        packing = scan(tree)
    names = {name for name, _ in packing.skipped}
    assert {"absolute", "outside", "fifo", "socket"} <= names
    assert ".git/HEAD" in packing.entries
    extract(io.BytesIO(b"".join(packing.pieces())), tmp_path / "out", max_bytes=10**9)


def test_patterns_exclude_by_name_and_by_path(tree: Path) -> None:
    entries = scan(tree, [".git", "src/*.bin"]).entries
    assert not any(".git" in name or name.endswith(".bin") for name in entries)
    assert "src/größe 🐘.txt" in entries


def test_the_state_of_a_suite_is_never_sent_and_private_files_only_when_asked_for(tmp_path: Path) -> None:
    tree = tmp_path / "project"
    for name in (
        ".env",
        "src/main.py",
        ".venv/bin/python",
        "build/out.o",
        "state/secrets.json",
        "state/admin-password",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    (tree / ".gitignore").write_text("build/\n")
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    sent = {name for name in scan(tree, [".git"]).entries if (tree / name).is_file()}
    assert sent == {".gitignore", "src/main.py"}
    assert {name for name, _ in scan(tree, [".git"]).skipped} == {".env", ".venv", "build", "state"}
    sent = {name for name in scan(tree, [".git"], everything=True).entries if (tree / name).is_file()}
    assert sent == {".env", ".gitignore", ".venv/bin/python", "build/out.o", "src/main.py"}
    with pytest.raises(ArchiveError, match="secrets of a running suite"):
        scan(tree / "state", everything=True)


def test_a_file_that_changes_while_it_is_packed_breaks_nothing(tree: Path, tmp_path: Path) -> None:
    packing = scan(tree)
    pieces = packing.pieces()
    first = next(pieces)
    (tree / "src" / "big.bin").write_bytes(b"short")
    extract(io.BytesIO(first + b"".join(pieces)), tmp_path / "out", max_bytes=10**9)


def test_a_directory_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        scan(tmp_path / "nowhere")


HOSTILE = {
    "traversal": [(entry("../evil"), b"x")],
    "inner traversal": [(entry("a/../../evil"), b"x")],
    "absolute": [(entry("/tmp/evil"), b"x")],
    "device": [(entry("null", tarfile.CHRTYPE), b"")],
    "fifo": [(entry("pipe", tarfile.FIFOTYPE), b"")],
    "hard link": [(entry("h", tarfile.LNKTYPE, "/etc/passwd"), b"")],
    "too large": [(entry("a"), b"x" * 2000)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(ArchiveError):
        extract(archive(*HOSTILE[kind]), out, max_bytes=1000)
    assert sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir()) in ([], ["a"])


@pytest.mark.parametrize("target", ["/etc/passwd", "../..", "a/../../.."])
def test_links_that_lead_out_are_left_out_and_told(tmp_path: Path, target: str) -> None:
    content = archive(
        (entry("a", tarfile.SYMTYPE, "."), b""),
        (entry("out", tarfile.SYMTYPE, target), b""),
        (entry("b"), b"x"),
    )
    done = extract(content, tmp_path / "x", max_bytes=1000)
    assert [name for name, _ in done.skipped] == ["out"]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a", "b"]


def test_links_are_made_last_so_nothing_is_written_through_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hostile = archive((entry("d", tarfile.SYMTYPE, "real"), b""), (entry("d/x"), b"x"))
    with pytest.raises(ArchiveError):
        extract(hostile, out, max_bytes=1000)
    assert not (out / "real").exists()


def test_a_link_that_is_there_already_is_not_followed(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (out / "d").symlink_to(other)
    (out / "f").symlink_to(other / "target")
    with pytest.raises(ArchiveError):
        extract(archive((entry("d/x"), b"x")), out, max_bytes=1000)
    extract(archive((entry("f"), b"x")), out, max_bytes=1000)
    assert list(other.iterdir()) == []
    assert (out / "f").read_bytes() == b"x"


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_broken_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArchiveError):
        extract(io.BytesIO(content), tmp_path / "out", max_bytes=1000)


async def test_up_and_down_again(server: ScriptedServer, client: Client, tree: Path, tmp_path: Path) -> None:
    log = server.new_log()
    told: list[int] = []
    done = await client.workspaces.upload_directory(
        log.session.id, tree, exclude=[".git"], on_progress=lambda packing: told.append(packing.packed_bytes)
    )
    assert done.size_bytes == len(log.workspace) > 3_000_000
    assert told[-1] > 3_000_000
    assert server.calls["UploadWorkspace"][0].session_id == log.session.id
    back = await client.workspaces.download_workspace(log.session.id, tmp_path / "back")
    assert back.file_count == 4
    assert (tmp_path / "back" / "src" / "big.bin").read_bytes() == (tree / "src" / "big.bin").read_bytes()


async def test_an_upload_is_repeated_as_the_same_request(
    server: ScriptedServer, client: Client, tree: Path
) -> None:

    server.faults["UploadWorkspace"] = [Fault(grpc.StatusCode.UNAVAILABLE), None]
    log = server.new_log()
    await client.workspaces.upload_directory(log.session.id, tree)
    ids = {request.request_id for request in server.calls["UploadWorkspace"]}
    assert len(server.calls["UploadWorkspace"]) == 2
    assert len(ids) == 1


async def test_a_source_that_fails_ends_the_upload(server: ScriptedServer, client: Client) -> None:
    log = server.new_log()

    def pieces():
        yield b"first"
        raise ArchiveError("gone")

    with pytest.raises(ArchiveError):
        await client.workspaces.upload(log.session.id, pieces)
    assert log.workspace == b""
