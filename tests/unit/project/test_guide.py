"""The guide lists every reason that a client or an operator can meet, and none that there is not."""

import re

import pytest

from aiagent.auth.v1 import error_reason_pb2 as auth
from aiagent.executor.v1 import error_reason_pb2 as executor
from aiagent.scheduler.v1 import error_reason_pb2 as scheduler
from aiagent.session.v1 import error_reason_pb2 as session
from deploy.local.settings import LocalSettings
from services.auth.settings import AuthSettings
from services.executor.settings import ExecutorSettings
from services.scheduler.settings import SchedulerSettings
from services.session.settings import SessionSettings

from .test_files import ROOT, tracked

pytestmark = pytest.mark.unit
SETTINGS = (LocalSettings, AuthSettings, SessionSettings, ExecutorSettings, SchedulerSettings)
REASON = r'"([A-Z]+(?:_[A-Z]+)*)"'
# An attempt that was lost so is followed by another one; the turn ends with ATTEMPTS_EXHAUSTED.
LOSES_AN_ATTEMPT_ONLY = {"EXECUTOR_LOST"}


def listed() -> dict[str, set[str]]:
    """The first column of each table, by the first word of the heading above it."""
    found: dict[str, set[str]] = {}
    for part in (ROOT / "docs/guide/errors.md").read_text("utf-8").split("\n## ")[1:]:
        rows = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
        assert len(rows) == len(set(rows)), "a reason comes twice"
        found[part.split()[0]] = set(rows)
    return found


def written(pattern: str, *places: str) -> set[str]:
    return {reason for path in tracked(*places) for reason in re.findall(pattern, path.read_text("utf-8"))}


@pytest.mark.parametrize(
    ("heading", "enum"),
    [("Auth", auth), ("Sessions", session), ("Tasks", scheduler), ("Executors", executor)],
)
def test_each_reason_of_a_service_is_listed(heading: str, enum: object) -> None:
    names = set(enum.ErrorReason.Reason.keys()) - {"REASON_UNSPECIFIED"}  # type: ignore[attr-defined]
    assert listed()[heading] == names


def test_each_reason_of_the_kernel_is_listed() -> None:
    raised = written(rf"(?:unavailable|unauthenticated|permission_denied)\(\s*{REASON}", "services/kernel")
    raised |= written(rf"reason={REASON}", "services/kernel")
    # Those have the service's domain, and are in its enum.
    of_services = {"INVALID_REQUEST", "DRAINING", "REQUEST_ID_REUSED"}
    assert listed()["Any"] == raised - of_services


def test_each_reason_of_the_edge_is_listed() -> None:
    told = written(r'"([A-Z]+_[A-Z_]+|FORBIDDEN|INTERNAL)"', "deploy/envoy/errors.lua")
    assert told - listed()["Any"] == listed()["Edge"]


def test_each_reason_of_a_failed_turn_is_listed() -> None:
    told = written(rf"Failure\(\s*{REASON}", "services/session")
    told |= written(rf"(?:Outcome\.FAILED, |_failed\(){REASON}", "services/executor")
    told |= written(rf"Refusal\(\s*{REASON}", "services/executor")
    told |= written(rf"return {REASON}, \(", "services/executor")
    assert listed()["Turns"] == told - LOSES_AN_ATTEMPT_ONLY


def test_each_reason_of_a_run_is_listed() -> None:
    told = written(rf"Final = {REASON}", "services/scheduler/domain/runs.py")
    told |= written(rf"Final = {REASON}", "services/scheduler/usecases/firing/prompts.py")
    assert listed()["Runs"] == told


def test_each_setting_is_listed() -> None:
    shown = set(
        re.findall(r"`((?:AIAGENT|ANTHROPIC)_[A-Z_]+)`", (ROOT / "docs/guide/running.md").read_text("utf-8"))
    )
    fields = {name.upper() for settings in SETTINGS for name in settings.model_fields}
    there = {name if name.startswith("ANTHROPIC_API") else f"AIAGENT_{name}" for name in fields}
    assert there - shown == set()
    assert shown - there == set()
