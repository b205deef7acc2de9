"""What importing costs: help needs no gRPC, and the package hands out its names when they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from typer.main import get_command

import aiagent_client
from aiagent_client.cli import app

pytestmark = pytest.mark.unit
HEAVY = ("grpc", "google.protobuf", "filelock")


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"], []], ids=["help", "wrong", "none"])
def test_what_needs_no_server_imports_no_client(arguments: list[str]):
    script = (
        "import sys; from aiagent_client.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_group_says_of_itself_what_the_root_says_of_it():
    groups = get_command(app).commands  # type: ignore[attr-defined]
    assert list(groups) == ["auth", "sessions", "tasks", "schedules", "webhooks", "config"]
    for name, group in groups.items():
        module = import_module(f"aiagent_client.cli.{name}")
        own = get_command(module.app)
        assert group.help == own.help
        assert list(group.commands) == list(own.commands)


def test_every_exported_name_is_there():
    for name in aiagent_client.__all__:
        assert getattr(aiagent_client, name) is not None, name
    assert set(dir(aiagent_client)) >= set(aiagent_client.__all__)
    with pytest.raises(AttributeError):
        _ = aiagent_client.nonsense
