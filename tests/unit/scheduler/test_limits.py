"""What one user may take, as services are set up without a word from the operator."""

from __future__ import annotations

import pytest

from services.executor.domain.places import background_places
from services.executor.settings import ExecutorSettings
from services.scheduler.settings import SchedulerSettings

pytestmark = pytest.mark.unit


def test_runs_of_one_user_that_hang_leave_a_place_for_those_of_others() -> None:
    of_one = SchedulerSettings.model_fields["scheduler_max_runs_per_user"].default
    places = ExecutorSettings.model_fields["executor_max_live_clients"].default
    assert 0 < of_one < background_places(places)
