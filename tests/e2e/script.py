"""Scripts for the offline model: what the model says and does, written into the prompt."""

from __future__ import annotations

import json
from typing import Any

Step = dict[str, Any]


def prompt(*steps: Step, text: str = "Please follow the script.") -> str:
    """A message whose n-th model call plays the n-th step."""
    return f"{text} <<SCRIPT>>{json.dumps(list(steps))}<<END>>"


def say(text: str, *, tokens_per_second: float | None = None) -> Step:
    """A step that is text, paced if wanted."""
    step: Step = {"text": text}
    if tokens_per_second is not None:
        step["tokens_per_second"] = tokens_per_second
    return step


def use(name: str, text: str = "", **tool_input: Any) -> Step:
    """A step that calls a tool, after some text if wanted."""
    step: Step = {"tools": [{"name": name, "input": tool_input}]}
    if text:
        step["text"] = text
    return step


def think(thinking: str, text: str) -> Step:
    """A step that thinks, then speaks."""
    return {"thinking": thinking, "text": text}


def recall(pattern: str) -> Step:
    """A step that answers with what the pattern finds in the conversation before this message."""
    return {"recall": pattern}


def fail(status: int) -> Step:
    """A step in which the model API answers with an HTTP status."""
    return {"status": status}


def hang() -> Step:
    """A step in which the model API never answers."""
    return {"hang": True}
