"""What turns spend at the model: every call of an agent is on the account of the turn that is running.

The gateway sees all of them: the agent's own, those of its subagents, those that the CLI makes on the side, and those
that a program in the sandbox makes by itself. The CLI's own account is none: a process that resumes a conversation
goes on from the total that it finds beside the transcript, which another machine does not have.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import Counter

from services.executor.domain.items import Spent, Usage
from services.executor.domain.prices import CallUsage, cost_usd
from services.kernel.telemetry import registry

TOKENS: Final = Counter(
    "aiagent_model_tokens_total",
    "Tokens as the model API reports them; of a call that was cut, the output that had come.",
    ("model", "kind"),
    registry=registry,
)
MOST_CALLS: Final = 16
"""Calls of one turn that may be under way: each holds its request in memory."""
_MOST_LINE_BYTES: Final = 8 * 1024 * 1024
_MAX_TOKENS: Final = re.compile(rb'"max_tokens"\s*:\s*([0-9]{1,9})')
_BYTES_PER_TOKEN: Final = 3
_DIGITS: Final = 6
"""Of a dollar, as the session service keeps them: parts that are rounded alike add up to the whole."""


class Account:
    """What one turn has spent, and may.

    Attributes:
        refused: Whether a call was refused because the budget is used up.
        closed: Whether the turn is over.
    """

    def __init__(self, budget_usd: float = 0.0) -> None:
        """Args: budget_usd: what the turn may spend in US dollars; 0 for no limit."""
        self._budget_usd = budget_usd
        self._calls: set[MeteredCall] = set()
        self._usage = Usage()
        self._cost_usd = 0.0
        self._model_calls = 0
        self._told = Spent()
        self._freed = asyncio.Event()
        self.refused = False
        self.closed = False

    def admits(self) -> bool:
        """Whether another call may be made. Those that are under way count with what is known of them."""
        if self._budget_usd and self._sum(self._calls).cost_usd >= self._budget_usd:
            self.refused = True
        return not self.closed and not self.refused

    async def admit(self, most_usd: float) -> bool:
        """Whether another call may be made, after waiting for those under way as far as they may use up the budget.

        A call alone is made as long as anything is left: nobody knows before what it costs. Beside others it is made
        when the budget has room for the most that all of them may cost.

        Args:
            most_usd: What the call may cost at most; see `most_usd`.
        """
        while self.admits():
            if not self._calls or (len(self._calls) < MOST_CALLS and self._room(most_usd)):
                return True
            self._freed = asyncio.Event()
            await self._freed.wait()
        return False

    def _room(self, most_usd: float) -> bool:
        return not self._budget_usd or self._cost_usd + self._reserved() + most_usd <= self._budget_usd

    def _reserved(self) -> float:
        return sum(max(call.most_usd, cost_usd(call.model, call.usage)) for call in self._calls)

    def begin(self, model: str, label: str, abort: Callable[[], None], most_usd: float = 0.0) -> MeteredCall:
        """Opens a call.

        Args:
            model: The model that is asked for; the answer's word counts more.
            label: What metrics call it.
            abort: Ends the call: the turn is over.
            most_usd: What it may cost at most.
        """
        call = MeteredCall(self, model, label, abort, most_usd)
        self._calls.add(call)
        return call

    def book(self, call: MeteredCall) -> None:
        """Takes what a call has cost for good, once."""
        if call not in self._calls:
            return
        booked = self._sum({call})
        self._calls.discard(call)
        self._freed.set()
        self._usage, self._cost_usd, self._model_calls = booked.usage, booked.cost_usd, booked.model_calls

    def take(self) -> Spent | None:
        """What the calls that are answered have cost since it was last taken; None when that is nothing."""
        return self._tell(self._sum(()))

    def close(self) -> Spent:
        """Ends the turn, and what it has under way; returns what has not been taken yet."""
        self.closed = True
        self._freed.set()
        rest = self._tell(self._sum(self._calls))
        for call in list(self._calls):
            self.book(call)
            call.abort()
        return rest or Spent()

    def _sum(self, calls: Iterable[MeteredCall]) -> Spent:
        """All that is booked, with these calls."""
        usage, cost, answered = self._usage, self._cost_usd, self._model_calls
        for call in calls:
            used = call.usage
            usage += Usage(
                used.input_tokens, used.output_tokens, used.cache_read_tokens, used.cache_write_tokens
            )
            cost += cost_usd(call.model, used)
            answered += call.answered
        return Spent(usage, cost, answered)

    def _tell(self, total: Spent) -> Spent | None:
        total = Spent(total.usage, round(total.cost_usd, _DIGITS), total.model_calls)
        told, self._told = self._told, total
        if total == told:
            return None
        return Spent(
            total.usage - told.usage,
            round(total.cost_usd - told.cost_usd, _DIGITS),
            total.model_calls - told.model_calls,
        )


class MeteredCall:
    """One call of the model: finds the usage in an answer that streams through, event by event, or in a whole one.

    Attributes:
        model: Whose price it has.
        abort: Ends it.
        most_usd: What it may cost at most.
    """

    def __init__(
        self, account: Account, model: str, label: str, abort: Callable[[], None], most_usd: float
    ) -> None:
        """Use `Account.begin`."""
        self._account = account
        self._label = label
        self._rest = b""
        self._reported: dict[str, Any] = {}
        self._pieces = 0
        self._whole = False
        self._done = False
        self._document = False
        self.model = model
        self.abort = abort
        self.most_usd = most_usd

    @property
    def answered(self) -> bool:
        """Whether the model has begun to answer."""
        return self.usage != CallUsage()

    @property
    def usage(self) -> CallUsage:
        """What is known of it. An answer that was cut has no last word: each piece of it was a token at least."""
        usage = _usage(self._reported)
        if self._whole or self._pieces <= usage.output_tokens:
            return usage
        return _usage({**self._reported, "output_tokens": self._pieces})

    def expect_document(self) -> None:
        """Says that the answer is one JSON document: it may have its usage on any of its lines."""
        self._document = True

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece of the answer, before the agent has it."""
        if self._document:
            self._rest += chunk if len(self._rest) < _MOST_LINE_BYTES else b""
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > _MOST_LINE_BYTES:
            self._rest = b""

    def _line(self, line: bytes) -> None:
        self._pieces += b'"content_block_delta"' in line
        if b'"usage"' not in line:
            return
        try:
            event = json.loads(line.removeprefix(b"data:"))
            message = event.get("message") or event
            usage = message["usage"]
            # The figures of later events include those of earlier ones.
            self._reported |= {name: value for name, value in usage.items() if value}
            self.model = str(message.get("model") or self.model)
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        if event.get("type") in ("message_delta", "message"):
            self._whole = True
            self._account.book(self)

    def done(self) -> None:
        """The answer is over, or was cut."""
        if self._done:
            return
        self._done = True
        self._line(self._rest)
        self._account.book(self)
        used = self.usage
        TOKENS.labels(self._label, "input").inc(used.input_tokens)
        TOKENS.labels(self._label, "output").inc(used.output_tokens)
        TOKENS.labels(self._label, "cache_read").inc(used.cache_read_tokens)
        TOKENS.labels(self._label, "cache_write").inc(used.cache_write_tokens)


def most_usd(model: str, body: bytes) -> float:
    """What a call may cost at most, roughly: all of its request as new input, and as much output as it asks for.

    Args:
        model: As the request names it.
        body: The request.
    """
    output = max((int(found) for found in _MAX_TOKENS.findall(body)), default=0)
    return cost_usd(model, CallUsage(len(body) // _BYTES_PER_TOKEN, output))


def _usage(reported: Mapping[str, Any]) -> CallUsage:
    written = reported.get("cache_creation")
    tools = reported.get("server_tool_use")
    return CallUsage(
        _count(reported, "input_tokens"),
        _count(reported, "output_tokens"),
        _count(reported, "cache_read_input_tokens"),
        _count(reported, "cache_creation_input_tokens"),
        min(_count(written, "ephemeral_1h_input_tokens"), _count(reported, "cache_creation_input_tokens")),
        _count(tools, "web_search_requests"),
        reported.get("speed") == "fast",
    )


def _count(reported: object, name: str) -> int:
    value = reported.get(name) if isinstance(reported, Mapping) else None
    return max(value, 0) if isinstance(value, int) else 0
