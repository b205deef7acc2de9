"""Signatures, pauses and bodies of webhooks; and the verification that the guide shows."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.scheduler.domain.webhooks import (
    Aftermath,
    DeliveryState,
    aftermath,
    headers,
    next_pause,
    pause_after,
    secret_bytes,
    secret_text,
    signature,
)

pytestmark = pytest.mark.unit
GUIDE = Path(__file__).parents[3] / "docs/guide/webhooks.md"
# The example that the libraries of Standard Webhooks test themselves with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
LEFT = timedelta(hours=1)
SIGNED = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY)
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_published_example() -> None:
    assert signature(secret_bytes(SECRET), *SIGNED) == SIGNATURE


def test_each_secret_signs() -> None:
    made = headers([secret_bytes(SECRET), b"another"], *SIGNED)
    assert made["webhook-signature"].split() == [SIGNATURE, signature(b"another", *SIGNED)]
    assert (made["webhook-id"], made["webhook-timestamp"]) == (SIGNED[0], "1614265330")


def test_a_secret_is_written_as_the_specification_has_it() -> None:
    raw = bytes(range(32))
    assert secret_text(raw) == "whsec_" + base64.b64encode(raw).decode()
    assert secret_bytes(secret_text(raw)) == raw
    for text in ("", base64.b64encode(raw).decode(), "whsec_a", "whsec_*A=="):
        with pytest.raises(ValueError, match="secret"):
            secret_bytes(text)


def test_pauses_grow_and_are_moved_by_chance() -> None:
    middle = [next_pause(attempt, 0.5).total_seconds() for attempt in range(1, 12)]
    assert middle == [5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800, 28800]
    assert next_pause(1, 0.0) == timedelta(seconds=4)
    assert timedelta(seconds=5.9) < next_pause(1, 0.999) < timedelta(seconds=6)


def test_a_receivers_wish_is_heeded_within_bounds() -> None:
    assert next_pause(1, 0.5, timedelta(seconds=60)) == timedelta(seconds=60)
    assert next_pause(1, 0.5, timedelta(seconds=1)) == timedelta(seconds=5)
    assert next_pause(1, 0.5, timedelta(seconds=-9)) == timedelta(seconds=5)
    assert next_pause(1, 0.5, timedelta(days=9)) == timedelta(hours=8)


def test_nothing_follows_for_a_receiver_that_is_gone() -> None:
    assert pause_after(1, 410, 0.5) is None
    assert pause_after(2, 0, 0.5) == timedelta(seconds=30)
    assert pause_after(1, 503, 0.5, timedelta(seconds=60)) == timedelta(seconds=60)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("state", list(DeliveryState))
def test_a_message_that_was_taken_was_taken(state: DeliveryState, held: bool) -> None:
    taken = aftermath(state, failed=False, held=held, pause=None, left=-LEFT)
    assert taken == Aftermath(DeliveryState.SUCCEEDED if state is DeliveryState.PENDING else state)


@pytest.mark.parametrize(
    ("state", "held", "pause", "left", "expected"),
    [
        ("PENDING", True, LEFT, 2 * LEFT, Aftermath(DeliveryState.PENDING, LEFT)),
        ("PENDING", True, 2 * LEFT, LEFT, Aftermath(DeliveryState.PENDING, LEFT)),
        ("PENDING", True, LEFT, timedelta(), Aftermath(DeliveryState.FAILED)),
        ("PENDING", True, None, LEFT, Aftermath(DeliveryState.FAILED)),
        # Somebody else has it.
        ("PENDING", False, LEFT, LEFT, Aftermath(DeliveryState.PENDING)),
        ("PENDING", False, None, timedelta(), Aftermath(DeliveryState.PENDING)),
        ("CANCELLED", True, LEFT, LEFT, Aftermath(DeliveryState.CANCELLED)),
        ("SUCCEEDED", True, LEFT, LEFT, Aftermath(DeliveryState.SUCCEEDED)),
    ],
)
def test_what_a_failure_makes_of_a_delivery(
    state: str, held: bool, pause: timedelta | None, left: timedelta, expected: Aftermath
) -> None:
    assert aftermath(DeliveryState(state), failed=True, held=held, pause=pause, left=left) == expected


@pytest.fixture
def verify() -> Callable[..., str]:
    """What the guide gives to receivers, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # that it runs is what is tested
    found: Callable[..., str] = names["verify"]
    return found


def test_the_guides_verification(verify: Callable[..., str]) -> None:
    now = int(time.time())
    old, new = b"o" * 32, b"n" * 32
    sent = dict(headers([new, old], "msg_1", now, BODY))
    assert verify(secret_text(new), sent, BODY) == "msg_1"
    assert verify(secret_text(old), sent, BODY) == "msg_1"
    refused: list[tuple[bytes, dict[str, str], bytes]] = [
        (b"x" * 32, sent, BODY),
        (new, sent, BODY + b" "),
        (new, {**sent, "webhook-id": "msg_2"}, BODY),
        (new, {**sent, "webhook-timestamp": str(now - 1)}, BODY),
        (new, {**sent, "webhook-signature": sent["webhook-signature"].replace("v1,", "v2,")}, BODY),
        (new, dict(headers([new], "msg_1", now - 400, BODY)), BODY),
        (new, dict(headers([new], "msg_1", now + 400, BODY)), BODY),
    ]
    for secret, given, body in refused:
        with pytest.raises(ValueError, match=r"signed|old"):
            verify(secret_text(secret), given, body)
