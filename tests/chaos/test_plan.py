"""Plans: the same seed gives the same plan, and all that a run is to see is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import plan

pytestmark = pytest.mark.unit


def test_a_seed_is_a_plan(tmp_path: Path):
    first, again, other = plan.make(7, 120), plan.make(7, 120), plan.make(8, 120)
    assert first == again
    assert first != other
    first.save(tmp_path / "plan.json")
    saved = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert saved["seed"] == 7
    assert len(saved["faults"]) == len(first.faults)


def test_a_long_plan_has_every_kind_of_fault_and_act():
    made = plan.make(1, 600)
    assert {(fault.kind, fault.how) for fault in made.faults} == set(plan.FAULTS)
    assert {act.kind for act in made.acts} == {"fresh", "message", "interrupt", "watch", "upload"}


@pytest.mark.parametrize("seed", range(5))
def test_plans_keep_their_bounds(seed: int):
    made = plan.make(seed, 60)
    assert all(fault.seconds <= plan.FREEZE_SECONDS and 0 <= fault.pick < 1 for fault in made.faults)
    last = made.faults[-1].at
    assert last < 60
    assert all(act.at <= last - plan.QUIET_SECONDS for act in made.acts)
    tokens = [step["token"] for act in made.acts if act.kind == "message" for step in act.data["steps"]]
    assert len(tokens) == len(set(tokens))
