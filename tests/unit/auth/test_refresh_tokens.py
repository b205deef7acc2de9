"""What a use of a refresh token means."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.auth.domain.refresh import REUSE_GRACE, RefreshToken, Verdict, judge

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOME, ELSEWHERE = b"home", b"elsewhere"
FRESH = RefreshToken(
    id=uuid4(),
    family_id=uuid4(),
    user_id=uuid4(),
    organization_id=uuid4(),
    expire_time=NOW + timedelta(days=7),
    revoked=False,
    use_time=None,
    used_by=None,
)
USED = replace(FRESH, use_time=NOW, used_by=HOME)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("token", "client", "after", "verdict"),
    [
        (None, HOME, timedelta(), Verdict.REFUSE),
        (FRESH, HOME, timedelta(), Verdict.ROTATE),
        (FRESH, ELSEWHERE, timedelta(days=6), Verdict.ROTATE),
        (FRESH, HOME, timedelta(days=7) - TICK, Verdict.ROTATE),
        (FRESH, HOME, timedelta(days=7), Verdict.REFUSE),
        (replace(FRESH, revoked=True), HOME, timedelta(), Verdict.REFUSE),
        (USED, HOME, timedelta(), Verdict.REPEAT),
        (USED, HOME, REUSE_GRACE, Verdict.REPEAT),
        (USED, HOME, REUSE_GRACE + TICK, Verdict.REVOKE),
        # Another replica's clock is a little ahead of ours.
        (USED, HOME, -timedelta(seconds=2), Verdict.REPEAT),
        (USED, ELSEWHERE, timedelta(), Verdict.REVOKE),
        (USED, ELSEWHERE, timedelta(days=8), Verdict.REFUSE),
        (replace(USED, revoked=True), HOME, timedelta(), Verdict.REFUSE),
        (replace(USED, revoked=True), ELSEWHERE, timedelta(), Verdict.REFUSE),
    ],
)
def test_judge(token: RefreshToken | None, client: bytes, after: timedelta, verdict: Verdict) -> None:
    assert judge(token, client, NOW + after) is verdict
