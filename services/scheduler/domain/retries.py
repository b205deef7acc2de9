"""When a failed attempt of a run is followed by another one.

Exponential backoff; the pause is shortened at random, so that runs which failed together do not come back together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.kernel.errors import FieldViolation
from services.scheduler.domain.violations import refuse

MAX_ATTEMPTS: Final = 100
MAX_PAUSE: Final = timedelta(days=1)
MAX_COEFFICIENT: Final = 100.0
MAX_REASONS: Final = 50
MAX_REASON_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a run is tried again.

    Attributes:
        maximum_attempts: How many attempts there may be, the first one included.
        initial_interval: The pause after the first attempt.
        backoff_coefficient: What each pause is longer by than the one before, 1 or more.
        maximum_interval: The longest pause.
        jitter: Which share of a pause chance may take away, 0 to 1.
        non_retryable_reasons: Reasons of failure after which no attempt follows.
    """

    maximum_attempts: int = 3
    initial_interval: timedelta = timedelta(seconds=10)
    backoff_coefficient: float = 2.0
    maximum_interval: timedelta = timedelta(minutes=10)
    jitter: float = 0.2
    non_retryable_reasons: frozenset[str] = frozenset()

    def check(self, path: str = "retry_policy") -> None:
        """Checks the bounds.

        Args:
            path: what the names of fields begin with in violations.

        Raises:
            ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, and a violation OUT_OF_RANGE for each field at fault.
        """
        rules = {
            "maximum_attempts": (
                1 <= self.maximum_attempts <= MAX_ATTEMPTS,
                f"must be 1 to {MAX_ATTEMPTS}",
            ),
            "initial_interval": (
                timedelta() <= self.initial_interval <= MAX_PAUSE,
                f"must be 0 to {MAX_PAUSE // timedelta(seconds=1)} seconds",
            ),
            "backoff_coefficient": (
                1 <= self.backoff_coefficient <= MAX_COEFFICIENT,
                f"must be 1 to {MAX_COEFFICIENT:g}",
            ),
            "maximum_interval": (
                self.initial_interval <= self.maximum_interval <= MAX_PAUSE,
                f"must be initial_interval to {MAX_PAUSE // timedelta(seconds=1)} seconds",
            ),
            "jitter": (0 <= self.jitter <= 1, "must be 0 to 1"),
            "non_retryable_reasons": (
                len(self.non_retryable_reasons) <= MAX_REASONS
                and all(0 < len(reason) <= MAX_REASON_CHARACTERS for reason in self.non_retryable_reasons),
                f"must be at most {MAX_REASONS}, each of 1 to {MAX_REASON_CHARACTERS} characters",
            ),
        }
        found = [
            FieldViolation(f"{path}.{field}", description, "OUT_OF_RANGE")
            for field, (holds, description) in rules.items()
            if not holds
        ]
        if found:
            raise refuse(found)

    def pause_after(self, attempt: int, reason: str, draw: Callable[[], float]) -> timedelta | None:
        """How long to wait before the next attempt.

        Args:
            attempt: number of the attempt that failed, from 1.
            reason: why it failed.
            draw: a source of chance, 0 to 1 without 1, such as `random.random`.

        Returns:
            The pause; None if there is to be no other attempt.
        """
        if attempt >= self.maximum_attempts or reason in self.non_retryable_reasons:
            return None
        initial, longest = self.initial_interval.total_seconds(), self.maximum_interval.total_seconds()
        pause = longest
        if initial == 0:
            pause = 0.0
        # Compared by logarithms, since the power may be larger than any float.
        elif (growth := (attempt - 1) * math.log(self.backoff_coefficient)) < math.log(longest / initial):
            pause = initial * math.exp(growth)
        return timedelta(seconds=pause * (1 - self.jitter * draw()))
