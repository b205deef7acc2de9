"""The secrets of a state directory, also of one that an earlier version has made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.local.state import StateDirectory
from services.kernel.sealing import KeyRing

pytestmark = pytest.mark.unit


def test_what_an_earlier_version_did_not_have_is_made_once_and_kept(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    made = state.secrets()
    path = tmp_path / "secrets.json"
    earlier = json.loads(path.read_text("utf-8"))
    del earlier["scheduler_encryption_key"]
    path.write_text(json.dumps(earlier), "utf-8")
    found = state.secrets()
    assert {name: vars(found)[name] for name in earlier} == earlier
    assert found.scheduler_encryption_key != made.scheduler_encryption_key
    KeyRing(found.scheduler_encryption_key, service="scheduler")
    assert state.secrets() == found
