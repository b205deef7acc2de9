"""Settings come from the environment, and secrets do not show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.kernel.identity import generate_private_key, private_key_to_text, public_key_to_text
from services.kernel.settings import KernelSettings, targets

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_keys_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_private_key()
    public = public_key_to_text(key.public_key())
    monkeypatch.setenv("AIAGENT_SERVICE_KEY", private_key_to_text(key))
    monkeypatch.setenv("AIAGENT_SERVICE_TRUST", json.dumps({"session": public}))
    settings = KernelSettings()
    assert private_key_to_text(settings.private_key()) == private_key_to_text(key)
    assert public_key_to_text(settings.trusted_keys()["session"]) == public
    assert private_key_to_text(key) not in repr(settings)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="AIAGENT_SERVICE_KEY"):
        KernelSettings().private_key()


def test_the_file_is_read_after_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("AIAGENT_LOG_LEVEL=DEBUG\nAIAGENT_REFLECTION=false\nOTHER=1\n", "utf-8")
    monkeypatch.setenv("AIAGENT_LOG_LEVEL", "ERROR")
    settings = KernelSettings()
    assert (settings.log_level, settings.reflection) == ("ERROR", False)


def test_a_wrong_value_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAGENT_DRAIN_SECONDS", "hunter2")
    with pytest.raises(ValidationError) as caught:
        KernelSettings()
    assert "hunter2" not in str(caught.value)
    assert "drain_seconds" in str(caught.value)


def test_targets_are_split() -> None:
    assert targets(" a:1, b:2,,") == ("a:1", "b:2")
    assert targets("") == ()
