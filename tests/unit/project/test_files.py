"""Conventions about files."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
MAX_LINES = 450
NOT_OURS = ("protos/gen/", "protos/third_party/")
DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc", "stuff"}


def tracked(*patterns: str) -> Iterator[Path]:
    """Yields the files of the checkout, without those that git ignores and those of others."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not name.startswith(NOT_OURS) and path.is_file():
            yield path


def test_no_file_outgrows_one_head() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in tracked("*.py", "*.ts", "*.tsx")
        if (count := len(path.read_text("utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def test_nothing_is_called_a_drawer() -> None:
    drawers = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if {part.lower() for part in (*path.relative_to(ROOT).parts[:-1], path.stem)} & DRAWERS
    ]
    assert drawers == []


def test_nothing_is_marked_unfinished() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|raise NotImplemented")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked("services/*.py", "clients/*.py", "deploy/*.py", "protos/*.py", "protos/*.proto")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if marks.search(line)
    ]
    assert found == []


LOUD = {"critical", "error", "exception", "warning"}


def is_silent(handler: ast.ExceptHandler) -> bool:
    """Returns whether a handler catches everything, and neither raises nor logs nor passes the error on."""
    broad = handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
    )
    if not broad:
        return False
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise):
            return False
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOUD:
            return False
        if handler.name is not None and isinstance(node, ast.Name) and node.id == handler.name:
            return False
    return True


def test_nothing_swallows_every_error_in_silence() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked("services/*.py", "clients/*.py", "deploy/*.py", "protos/*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler) and is_silent(node)
    ]
    assert silent == []


def fixed_sleeps(tree: ast.AST, *, polling: bool = False) -> Iterator[int]:
    """Yields the lines that sleep for a time written in the code; the pause of a loop that polls is none of them."""
    for node in ast.iter_child_nodes(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "sleep"
            # A fake clock's sleep takes no time.
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in ("asyncio", "time", "anyio")
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and node.args[0].value
            and not polling
        ):
            yield node.lineno
        yield from fixed_sleeps(node, polling=polling or isinstance(node, ast.While))


def test_no_test_sleeps_for_a_fixed_time() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in tracked("tests/*.py")
        for line in fixed_sleeps(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []


def test_lock_files_name_no_package_host() -> None:
    for lock in tracked("requirements*.lock"):
        assert "://" not in lock.read_text("utf-8"), lock.name


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    records = {path.name for path in tracked("docs/decisions/*.md")} - {"README.md"}
    listed = re.findall(
        r"^\| \[(\d{4})\]\(((\d{4})-[a-z0-9-]+\.md)\) \|",
        (folder / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert {name for _, name, _ in listed} == records
    assert [number for number, _, _ in listed] == sorted({number for _, _, number in listed})


def test_the_generated_packages_import() -> None:
    # In one process, so that two files that register the same name would be found.
    modules = [
        path.relative_to(ROOT / "protos/gen/python").with_suffix("").as_posix().replace("/", ".")
        for path in sorted((ROOT / "protos/gen/python/aiagent").rglob("*_pb2*.py"))
    ]
    assert len(modules) > 10
    for module in modules:
        __import__(module)
