"""What the model API refuses for good ends a turn of the real CLI at once, with a text that says who must do what."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.executor.domain.items import AttemptEnded, Decision, Item, Outcome, ToolUse
from services.executor.gateways import offline_model
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from tests.contract.executor.test_model_gateway import KEY, Upstream
from tests.unit.executor.memory_transcripts import MemoryTranscripts
from tests.unit.executor.scripted_agent import a_request

pytestmark = pytest.mark.contract

TURN_SECONDS = 25.0
"""A start takes seconds on a busy machine; the retries that must not be take minutes."""


def error(kind: str, message: str) -> bytes:
    return f'{{"type":"error","error":{{"type":"{kind}","message":"{message}"}}}}'.encode()


CASES = [
    (401, error("authentication_error", f"invalid x-api-key {KEY}"), "MODEL_ACCESS_DENIED", "API key"),
    (403, error("permission_error", "not for you"), "MODEL_ACCESS_DENIED", "API key"),
    (
        400,
        error("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        "MODEL_CREDIT_EXHAUSTED",
        "credit",
    ),
    (404, error("not_found_error", "model: claude-sonnet-4-5"), "MODEL_UNKNOWN", "claude-sonnet-4-5"),
]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    made.kind = "application/json"
    await made.start()
    yield made
    await made.stop()


async def end_of_a_turn(directory: Path, isolation: Isolation, gateway: ModelGateway, prompt: str):
    """Runs a turn of the real CLI; returns its end, and how long it took from the prompt on."""
    await gateway.start()
    agents = ClaudeAgents(
        directory / "state",
        directory / "workspaces",
        isolation,
        gateway,
        MemoryTranscripts(),
        offline_model=False,
        hook_timeout_seconds=60.0,
    )
    request = a_request(prompt=prompt)
    agent = agents.make(request.session_id)
    items: list[Item] = []

    async def emit(item: Item) -> None:
        items.append(item)

    async def ask(_call: ToolUse) -> Decision:
        return Decision(False, "")

    try:
        await agent.start(request)
        begun = time.monotonic()
        await agent.run(request, emit, ask, reused=False)
        took = time.monotonic() - begun
    finally:
        await agent.stop()
        await gateway.stop()
    end = items[-1]
    assert isinstance(end, AttemptEnded)
    assert KEY not in str(items)
    return end, took


@pytest.mark.parametrize(("status", "answer", "reason", "word"), CASES, ids=lambda value: str(value)[:24])
async def test_the_turn_ends_with_its_reason(
    directory: Path,
    strongest: Isolation,
    upstream: Upstream,
    status: int,
    answer: bytes,
    reason: str,
    word: str,
):
    upstream.status, upstream.answer = status, answer
    gateway = ModelGateway(
        directory / "state" / "run" / "refusing.sock", base_url=upstream.url, api_key=KEY, offline=None
    )
    end, took = await end_of_a_turn(directory, strongest, gateway, "Hello.")
    assert (end.outcome, end.reason) == (Outcome.FAILED, reason)
    assert word in end.message
    assert took < TURN_SECONDS
    asked = [path for method, path, _headers, _body in upstream.requests if "/messages" in path]
    assert len(asked) <= 3


async def test_the_offline_model_plays_the_same_refusal(directory: Path, strongest: Isolation):
    gateway = ModelGateway(
        directory / "state" / "run" / "refusing.sock", base_url="", api_key="", offline=offline_model.answer
    )
    end, took = await end_of_a_turn(
        directory, strongest, gateway, 'Please. <<SCRIPT>>[{"status": 401}]<<END>>'
    )
    assert (end.outcome, end.reason) == (Outcome.FAILED, "MODEL_ACCESS_DENIED")
    assert took < TURN_SECONDS
