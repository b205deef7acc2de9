"""Archives from outside: what is extracted, and what nothing is extracted of."""

from __future__ import annotations

import gzip
import resource
import stat
import zipfile
from pathlib import Path

import pytest

from services.kernel.errors import ErrorKind, ServiceError
from services.session.gateways import archives
from services.session.gateways.archives import extract
from tests.contract.session.hostile_archives import link, refused, tar, with_header, zipped

pytestmark = pytest.mark.contract
LIMIT = 1024 * 1024
HOSTILE = dict(refused())


@pytest.fixture
def into(tmp_path: Path) -> Path:
    place = tmp_path / "in" / "workspace"
    place.mkdir(parents=True)
    return place


def written(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(data)
    return path


def below(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(20)
def test_what_is_hostile_is_refused(
    name: str, into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 50)
    archive = written(HOSTILE[name], tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ServiceError) as refusal:
        extract(archive, into, LIMIT)
    assert (refusal.value.kind, refusal.value.reason) == (ErrorKind.INVALID_ARGUMENT, "ARCHIVE_INVALID")
    assert refusal.value.violations[0].field == "archive"
    assert below(tmp_path / "in") - {"workspace"} == {f"workspace/{found}" for found in below(into)}
    assert not any(
        found.is_symlink() for found in into.rglob("*") if not found.resolve().is_relative_to(into)
    )
    # In KiB. Nothing of it was loaded because a header said so.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


@pytest.mark.parametrize("make", [lambda *m: tar(*m), lambda *m: tar(*m, compress=False)], ids=["gz", "tar"])
def test_a_bomb_is_stopped_at_the_limit(make, into: Path, tmp_path: Path) -> None:
    archive = written(make(("a", bytes(LIMIT // 2)), ("b", bytes(LIMIT))), tmp_path)
    with pytest.raises(ServiceError) as refusal:
        extract(archive, into, LIMIT)
    assert refusal.value.reason == "WORKSPACE_TOO_LARGE"
    assert refusal.value.metadata["limit_bytes"] == str(LIMIT)
    assert sum(found.stat().st_size for found in into.rglob("*")) <= LIMIT


def claiming_much() -> bytes:
    def change(raw: bytearray) -> None:
        raw[124:136] = b"%011o\0" % (8 * LIMIT)

    return with_header(change)[:512]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "gz"])
def test_a_size_over_the_limit_is_refused_before_the_content_is_unpacked(
    pack, into: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServiceError) as refusal:
        extract(written(pack(claiming_much()), tmp_path), into, LIMIT)
    assert refusal.value.reason == "WORKSPACE_TOO_LARGE"
    assert below(into) == set()


@pytest.mark.parametrize("name", ["cut short", "gzip cut short", "garbage", "zip: cut short", "zip: garbage"])
def test_what_is_damaged_is_called_so_and_not_by_names_of_the_reader(
    name: str, into: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServiceError, match=r"^the archive is cut off or damaged$"):
        extract(written(HOSTILE[name], tmp_path), into, LIMIT)


def test_an_archive_of_countless_entries_is_refused(into: Path, tmp_path: Path) -> None:
    # The same directory again and again, which makes nothing: the bound is what is tried.
    entry = tar(("./", b"", {"type": b"5"}), compress=False)[:512]
    with pytest.raises(ServiceError, match="more than 50000 entries") as refusal:
        extract(written(gzip.compress(entry * 50_001, 1), tmp_path), into, LIMIT)
    assert (refusal.value.kind, refusal.value.reason) == (ErrorKind.INVALID_ARGUMENT, "ARCHIVE_INVALID")


def test_contents_of_a_zip_with_countless_entries_are_not_read(into: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="table of contents that is too large"):
        extract(written(HOSTILE["zip: endless contents"], tmp_path), into, LIMIT)


def test_a_zip_bomb_that_lies_about_its_size_is_stopped(into: Path, tmp_path: Path) -> None:
    raw = bytearray(zipped(("bomb", bytes(64 * LIMIT), 0o644)))
    directory = raw.index(b"PK\x01\x02")
    raw[22:26] = raw[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    with pytest.raises(ServiceError) as refusal:
        extract(written(bytes(raw), tmp_path), into, LIMIT)
    assert refusal.value.reason in {"WORKSPACE_TOO_LARGE", "ARCHIVE_INVALID"}
    assert sum(found.stat().st_size for found in into.rglob("*")) <= LIMIT


def test_what_is_harmless_is_extracted(into: Path, tmp_path: Path) -> None:
    archive = tar(
        ("./", b"", {"type": b"5"}),
        ("./src/", b"", {"type": b"5"}),
        ("./src/a.py", b"print()", {"mode": 0o644}),
        ("run.sh", b"#!/bin/sh", {"mode": 0o6777}),
        ("empty", b""),
        ("größe/naïve.txt", b"x"),
        ("n" * 200 + "/" + "m" * 200, b"long"),
        link("src/link", "a.py"),
        link("src/up", "../run.sh"),
        link("dangling", "nowhere"),
    )
    extracted = extract(written(archive, tmp_path), into, LIMIT)
    assert (extracted.file_count, extracted.size_bytes) == (8, 7 + 9 + 1 + 4)
    assert (into / "src/link").read_bytes() == b"print()"
    assert (into / "src/up").read_bytes() == b"#!/bin/sh"
    # Neither setuid nor setgid, nor writable for others.
    assert stat.S_IMODE((into / "run.sh").stat().st_mode) & 0o7022 == 0
    assert (into / "run.sh").stat().st_mode & stat.S_IXUSR
    assert not (into / "src/a.py").stat().st_mode & stat.S_IXUSR
    assert (into / ("n" * 200) / ("m" * 200)).read_bytes() == b"long"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_archives_are_taken_too(method: int, into: Path, tmp_path: Path) -> None:
    archive = zipped(
        ("d/", b"", stat.S_IFDIR | 0o755),
        ("d/a", b"a", stat.S_IFREG | 0o4755),
        ("from-windows", b"b", 0),
        ("l", b"d/a", stat.S_IFLNK | 0o777),
        method=method,
    )
    extracted = extract(written(archive, tmp_path), into, LIMIT)
    assert (extracted.file_count, extracted.size_bytes) == (3, 2)
    assert (into / "l").read_bytes() == b"a"
    assert stat.S_IMODE((into / "d/a").stat().st_mode) & 0o7000 == 0


def test_an_empty_archive_holds_nothing(into: Path, tmp_path: Path) -> None:
    assert extract(written(tar(), tmp_path), into, LIMIT).file_count == 0
    assert extract(written(zipped(), tmp_path), into, LIMIT).file_count == 0
