"""What calls of the model cost. Pure.

List prices in US dollars per million tokens, from https://platform.claude.com/docs/en/about-claude/pricing and
https://platform.claude.com/docs/en/build-with-claude/fast-mode as of 24 October 2026. The Claude Code CLI prices by the
same list: a contract test holds the two to each other, so that a CLI with newer prices is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PER_TOKEN: Final = 1e-6
WEB_SEARCH_USD: Final = 0.01
"""A search that the API makes for the model."""
LONG_PROMPT_TOKENS: Final = 100_000
"""Cached parts included."""
_WRITE_5_MINUTES: Final = 1.25
_WRITE_1_HOUR: Final = 2.0


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model.

    Attributes:
        input: Of a million input tokens that no cache served.
        output: Of a million output tokens.
        cache_read: Of an input token read from the cache, as a part of `input`.
        fast: How many times dearer the fast mode is.
        long: How many times dearer all of a call is whose prompt is longer than LONG_PROMPT_TOKENS.
    """

    input: float
    output: float
    cache_read: float = 0.1
    fast: float = 1.0
    long: float = 1.0


_PRICES: Final = {
    "claude-fable": Price(10, 50, cache_read=0.025, fast=2),
    "claude-fable-5": Price(10, 50),
    "claude-fable-5-1": Price(10, 50, cache_read=0.025),
    "claude-fable-5-2": Price(10, 50, cache_read=0.025, fast=2),
    "claude-mythos": Price(10, 50, cache_read=0.025, fast=2),
    "claude-mythos-5": Price(10, 50),
    "claude-mythos-5-1": Price(10, 50, cache_read=0.025),
    "claude-mythos-5-2": Price(10, 50, cache_read=0.025, fast=2),
    "claude-opus": Price(5, 25, fast=2),
    "claude-opus-5-5": Price(4, 20, cache_read=0.05, fast=2),
    "claude-opus-4-8": Price(5, 25, fast=2),
    "claude-opus-4": Price(5, 25, fast=6),
    "claude-opus-4-0": Price(15, 75),
    "claude-opus-4-1": Price(15, 75),
    "claude-opus-4-2025": Price(15, 75),
    "claude-3-opus": Price(15, 75),
    "claude-sonnet": Price(3, 15),
    "claude-sonnet-5": Price(2, 10),
    "claude-sonnet-5-5": Price(2, 10, cache_read=0.05),
    "claude-haiku": Price(1, 5),
    "claude-haiku-5-5": Price(0.1, 0.5, long=5),
    "claude-3-5-haiku": Price(0.8, 4),
    "claude-3-haiku": Price(0.25, 1.25),
    "claude-3": Price(3, 15),
}
_BY_LENGTH: Final = sorted(_PRICES, key=len, reverse=True)
_UNKNOWN: Final = Price(
    max(price.input for price in _PRICES.values()),
    max(price.output for price in _PRICES.values()),
    fast=max(price.fast for price in _PRICES.values()),
)
"""No model of the list is dearer: a budget stops an unknown one too early rather than too late."""


@dataclass(frozen=True, slots=True)
class CallUsage:
    """What the model API reports of one call: tokens, searches, and whether it was served in fast mode."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    """Those of `cache_write_tokens` that are kept for an hour; the others are for five minutes."""
    web_searches: int = 0
    fast: bool = False

    @property
    def prompt_tokens(self) -> int:
        """All that went in."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


def cost_usd(model: str, usage: CallUsage) -> float:
    """The price of one call in US dollars.

    Args:
        model: As the API or the request names it, with or without a date or a provider's prefix.
        usage: What the call used.
    """
    price = next((_PRICES[name] for name in _BY_LENGTH if name in model), _UNKNOWN)
    write = _WRITE_5_MINUTES * (usage.cache_write_tokens - usage.cache_write_1h_tokens)
    write += _WRITE_1_HOUR * usage.cache_write_1h_tokens
    tokens = price.input * (usage.input_tokens + price.cache_read * usage.cache_read_tokens + write)
    tokens += price.output * usage.output_tokens
    if usage.fast:
        tokens *= price.fast
    if usage.prompt_tokens > LONG_PROMPT_TOKENS:
        tokens *= price.long
    return tokens * _PER_TOKEN + WEB_SEARCH_USD * usage.web_searches
