"""What a call of the model costs, by the list."""

from __future__ import annotations

import pytest

from services.executor.domain.prices import CallUsage, cost_usd

pytestmark = pytest.mark.unit
MILLION = 1_000_000


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        ("claude-sonnet-4-5", CallUsage(MILLION), 3.0),
        ("claude-sonnet-4-5-20250929", CallUsage(0, MILLION), 15.0),
        ("us.anthropic.claude-sonnet-4-5-v1:0", CallUsage(0, 0, MILLION), 0.3),
        ("claude-sonnet-4-5", CallUsage(0, 0, 0, MILLION), 3.75),
        ("claude-sonnet-4-5", CallUsage(0, 0, 0, MILLION, MILLION), 6.0),
        ("claude-sonnet-4-5", CallUsage(0, 0, 0, MILLION, 400_000), 4.65),
        ("claude-sonnet-4-5", CallUsage(web_searches=3), 0.03),
        ("claude-sonnet-5-5", CallUsage(MILLION, MILLION, MILLION), 12.1),
        ("claude-opus-4-1-20250805", CallUsage(MILLION, MILLION), 90.0),
        ("claude-opus-4-20250514", CallUsage(MILLION), 15.0),
        ("claude-opus-4-5-20251101", CallUsage(MILLION, MILLION), 30.0),
        ("claude-opus-4-6", CallUsage(MILLION, fast=True), 30.0),
        ("claude-opus-5-5", CallUsage(MILLION, fast=True), 8.0),
        ("claude-opus-9", CallUsage(MILLION), 5.0),
        ("claude-haiku-4-5", CallUsage(MILLION, MILLION), 6.0),
        ("claude-3-5-haiku-20241022", CallUsage(MILLION), 0.8),
        ("claude-haiku-5-5", CallUsage(100_000, 100_000), 0.06),
        ("claude-haiku-5-5", CallUsage(1, 100_000, 100_000), 0.255),
        ("somebody-elses-model", CallUsage(MILLION, MILLION), 90.0),
        ("somebody-elses-model", CallUsage(MILLION, fast=True), 90.0),
        ("", CallUsage(MILLION), 15.0),
        ("claude-sonnet-4-5", CallUsage(), 0.0),
    ],
)
def test_a_call_has_its_price(model: str, usage: CallUsage, dollars: float):
    assert cost_usd(model, usage) == pytest.approx(dollars, abs=1e-5)
