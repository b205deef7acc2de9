"""The offline model: what a step says, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.executor.gateways import offline_model

pytestmark = pytest.mark.unit


async def deltas(*steps: dict[str, Any]) -> list[str]:
    """The pieces of text that a script's first step says."""
    script = f"<<SCRIPT>>{json.dumps(list(steps))}<<END>>"
    body = {"stream": True, "tools": [{}], "messages": [{"role": "user", "content": script}]}

    async def serve(request: web.Request) -> web.StreamResponse:
        return await offline_model.answer(request, body)

    application = web.Application()
    application.router.add_post("/v1/messages", serve)
    async with TestClient(TestServer(application)) as client, client.post("/v1/messages") as response:
        return list(_pieces(await response.text()))


def _pieces(answer: str) -> Iterator[str]:
    for line in answer.splitlines():
        if line.startswith("data: "):
            event = json.loads(line[6:])
            if event["type"] == "content_block_delta":
                yield event["delta"].get("text") or event["delta"].get("thinking") or ""


async def test_tokens_are_said_as_they_are_written():
    assert await deltas({"text": "one two three"}) == ["one", " two", " three"]


async def test_stamped_tokens_carry_the_time_of_their_sending():
    begun = time.monotonic_ns()
    pieces = await deltas({"text": "x x x", "stamped": True, "tokens_per_second": 100})
    stamps = [int(piece) for piece in pieces]
    assert all(piece.endswith(" ") for piece in pieces), "joined, they can be told apart"
    assert begun < stamps[0] < stamps[1] < stamps[2] < time.monotonic_ns()
    assert stamps[2] - stamps[0] >= 15_000_000


async def test_thinking_is_never_stamped():
    pieces = await deltas({"thinking": "well now", "text": "x", "stamped": True})
    assert pieces[:2] == ["well", " now"]
    assert pieces[-1].strip().isdigit()


def test_a_prompt_that_comes_with_the_results_of_tools_is_one():
    """After a turn that ended before the model saw them, the CLI sends them together."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": "<<SCRIPT>>[]<<END>>"}
    prompt = {"type": "text", "text": '<<SCRIPT>>[{"text": "new"}]<<END>>'}
    old = {"role": "user", "content": '<<SCRIPT>>[{"text": "old"}]<<END>>'}
    body = {"tools": [{}], "messages": [old, {"role": "user", "content": [result, prompt]}]}
    assert offline_model._step(body) == {"text": "new"}
    body["messages"][-1]["content"].remove(prompt)
    assert offline_model._step(body) == {"text": "old"}
