"""The gateway between agents and the model: it keeps the key, and passes on what an agent needs and nothing more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from services.executor.domain.items import Usage
from services.executor.gateways.model_gateway import ModelGateway
from services.kernel.telemetry import registry

pytestmark = pytest.mark.contract
KEY = "sk-the-real-key"
BODY = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}], "stream": True}

PACE_SECONDS = 0.05
"""Between two pieces of an answer: a model takes its time, too."""


class Upstream:
    """A model API that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status = 200
        self.kind = "text/event-stream"
        self.answer = b'data: {"usage": {"input_tokens": 7, "output_tokens": 2}}\n\n'
        self.breaks = False
        self.cut_at = 0
        self.hangs = False
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        # Answers that hang are not waited for.
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        headers = {
            "content-type": self.kind,
            "request-id": "req_1",
            "anthropic-organization-id": "org-of-the-key",
            "location": "http://elsewhere/",
        }
        if not self.breaks and not self.cut_at:
            return web.Response(status=self.status, body=self.answer, headers=headers)
        response = web.StreamResponse(status=self.status, headers=headers)
        await response.prepare(request)
        for piece in (self.answer[: self.cut_at], self.answer[self.cut_at :]):
            await response.write(piece)
            await (asyncio.Event().wait() if self.hangs else asyncio.sleep(PACE_SECONDS))
        if self.breaks and request.transport is not None:
            request.transport.abort()
        return response


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def keeping(upstream: Upstream, tmp_path: Path) -> AsyncIterator[ModelGateway]:
    """A gateway that keeps a key."""
    made = ModelGateway(tmp_path / "gateway.sock", base_url=upstream.url, api_key=KEY, offline=None)
    await made.start()
    yield made
    await made.stop()


def in_a_turn(gateway: ModelGateway) -> str:
    """The token of an agent whose turn is running."""
    token = gateway.admit()
    gateway.open_account(token)
    return token


async def ask(
    gateway: ModelGateway,
    token: str,
    *,
    method: str = "POST",
    path: str = "/v1/messages?beta=true",
    **options,
) -> tuple[int, bytes, dict[str, str]]:
    """Calls the gateway as an agent does: through its socket."""
    connector = aiohttp.UnixConnector(str(gateway.socket))
    headers = {"x-api-key": token, "anthropic-version": "2023-06-01", **options.pop("headers", {})}
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.request(method, f"http://gateway{path}", headers=headers, json=BODY, **options) as answer,
    ):
        return answer.status, await answer.read(), dict(answer.headers)


async def test_the_agents_token_is_swapped_for_the_key(keeping: ModelGateway, upstream: Upstream):
    token = in_a_turn(keeping)
    status, body, headers = await ask(keeping, token, headers={"authorization": f"Bearer {token}"})
    assert (status, body) == (200, upstream.answer)
    [(method, path, seen, sent)] = upstream.requests
    assert (method, path, json.loads(sent)) == ("POST", "/v1/messages?beta=true", BODY)
    lower = {name.lower(): value for name, value in seen.items()}
    assert lower["x-api-key"] == KEY
    assert "authorization" not in lower
    assert lower["anthropic-version"] == "2023-06-01"
    assert token not in str(seen)
    assert headers["request-id"] == "req_1"
    assert "org-of-the-key" not in str(headers), "whose key it is, is not the agent's to know"
    assert KEY not in str(headers) + body.decode()


def counted(name: str, **labels: str) -> float:
    """A counter's value."""
    return registry.get_sample_value(name, labels) or 0.0


async def test_calls_and_tokens_are_counted_for_each_model(
    keeping: ModelGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
):
    model = "claude-counted-1"
    monkeypatch.setitem(BODY, "model", model)
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}
    delta = {"type": "message_delta", "usage": {"output_tokens": 20}}
    # Pieces that cut an event in two are counted all the same.
    upstream.answer = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, delta))
    upstream.cut_at = 30
    await ask(keeping, in_a_turn(keeping))
    await ask(keeping, in_a_turn(keeping), path="/v1/messages/count_tokens")
    assert counted("aiagent_model_calls_total", model=model, answer="200") == 1
    assert counted("aiagent_model_tokens_total", model=model, kind="input") == 7
    assert counted("aiagent_model_tokens_total", model=model, kind="output") == 20


async def test_each_turn_has_an_account_and_without_a_turn_nothing_is_asked(
    keeping: ModelGateway, upstream: Upstream
):
    token = keeping.admit()
    assert (await ask(keeping, token))[0] == 403
    costs = []
    for _ in range(2):
        account = keeping.open_account(token)
        await ask(keeping, token)
        await ask(keeping, token, path="/v1/messages/count_tokens")
        costs.append(account.close())
        status, _, headers = await ask(keeping, token)
        assert (status, headers["x-should-retry"]) == (403, "false")
    assert [(spent.usage.input_tokens, spent.usage.output_tokens) for spent in costs] == [(7, 2)] * 2
    assert len(upstream.requests) == 4


async def test_tokens_are_counted_for_turns_only(keeping: ModelGateway, upstream: Upstream):
    token = keeping.admit()
    assert (await ask(keeping, token, path="/v1/messages/count_tokens"))[0] == 403
    account = keeping.open_account(token)
    assert (await ask(keeping, token, path="/v1/messages/count_tokens"))[0] == 200
    account.close()
    assert (await ask(keeping, token, path="/v1/messages/count_tokens"))[0] == 403
    assert len(upstream.requests) == 1


async def test_an_answer_that_is_no_stream_is_on_the_account(keeping: ModelGateway, upstream: Upstream):
    token = keeping.admit()
    account = keeping.open_account(token)
    upstream.kind = "application/json"
    answer = {"type": "message", "usage": {"input_tokens": 70, "output_tokens": 2}}
    upstream.answer = json.dumps(answer, indent=1).encode()
    await ask(keeping, token)
    assert account.close().usage == Usage(70, 2)


async def test_a_budget_that_is_spent_lets_no_call_through(keeping: ModelGateway, upstream: Upstream):
    upstream.answer = b'{"type": "message", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 1000}}'
    token = keeping.admit()
    account = keeping.open_account(token, 0.005)
    answers = [await ask(keeping, token) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 402]
    assert answers[2][2]["x-should-retry"] == "false"
    assert account.refused
    assert account.close().cost_usd == 0.006


async def test_what_a_turn_has_under_way_ends_with_it(keeping: ModelGateway, upstream: Upstream):
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}
    upstream.answer = b"data: " + json.dumps(start).encode() + b"\n\n" + b"x" * 100
    upstream.cut_at = len(upstream.answer) - 100
    upstream.hangs = True
    token = keeping.admit()
    account = keeping.open_account(token)
    connector = aiohttp.UnixConnector(str(keeping.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.post("http://gateway/v1/messages", headers={"x-api-key": token}, json=BODY) as answer,
    ):
        assert b"message_start" in await answer.content.readany()
        assert account.take() is None
        assert account.close().usage.input_tokens == 7
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(10):
                await answer.content.read()


async def test_an_answer_that_breaks_off_is_cut_and_no_second_one_follows(
    keeping: ModelGateway, upstream: Upstream
):
    upstream.breaks = True
    token = in_a_turn(keeping)
    reader, writer = await asyncio.open_unix_connection(str(keeping.socket))
    body = json.dumps(BODY).encode()
    head = (
        f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {token}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    seen = b""
    with suppress(ConnectionError):
        while piece := await asyncio.wait_for(reader.read(65536), 10):
            seen += piece
    writer.close()
    assert upstream.answer in seen
    assert seen.count(b"HTTP/1.1") == 1
    assert not seen.endswith(b"0\r\n\r\n"), "it must not look whole"


@pytest.mark.parametrize("token", ["", "agent-guessed", KEY])
async def test_an_unknown_token_gets_nothing(keeping: ModelGateway, upstream: Upstream, token: str):
    status, body, _ = await ask(keeping, token)
    assert status == 401
    assert json.loads(body)["error"]["type"] == "authentication_error"
    assert upstream.requests == []


async def test_a_token_ends_with_its_agent(keeping: ModelGateway, upstream: Upstream):
    token = in_a_turn(keeping)
    keeping.dismiss(token)
    assert (await ask(keeping, token))[0] == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/messages/../files"),
        ("POST", "/v1/messages%2f..%2ffiles"),
        ("GET", "/v1/organizations/users"),
        ("DELETE", "/v1/messages"),
        ("POST", "//elsewhere.example/v1/messages"),
    ],
)
async def test_nothing_else_of_the_account_is_reached(
    keeping: ModelGateway, upstream: Upstream, method: str, path: str
):
    token = in_a_turn(keeping)
    status, _, _ = await ask(keeping, token, method=method, path=path)
    assert status in (401, 404)
    assert [request for request in upstream.requests if not request[1].startswith("/v1/messages?")] == []


async def test_errors_of_the_model_pass_as_they_are(keeping: ModelGateway, upstream: Upstream):
    upstream.status, upstream.answer = 529, b'{"type": "error"}'
    token = in_a_turn(keeping)
    status, body, headers = await ask(keeping, token)
    assert (status, body, headers["request-id"]) == (529, upstream.answer, "req_1")


async def test_a_redirect_takes_the_key_nowhere(keeping: ModelGateway, upstream: Upstream):
    upstream.status = 307
    token = in_a_turn(keeping)
    assert (await ask(keeping, token, allow_redirects=False))[0] == 307
    assert len(upstream.requests) == 1


async def test_a_model_that_cannot_be_reached_is_said_so(keeping: ModelGateway, upstream: Upstream):
    await upstream.stop()
    token = in_a_turn(keeping)
    status, body, _ = await ask(keeping, token)
    assert status == 502
    assert json.loads(body)["error"] == {"type": "api_error", "message": "the model API cannot be reached"}


async def test_the_socket_is_its_owners_alone(keeping: ModelGateway):
    assert keeping.socket.stat().st_mode & 0o777 == 0o600


async def test_the_offline_model_plays_the_script_step_by_step(gateway: ModelGateway):
    token = in_a_turn(gateway)
    steps = [{"tools": [{"name": "Bash", "input": {"command": "ls"}}]}, {"text": "done"}]
    prompt = {"role": "user", "content": f"<<SCRIPT>>{json.dumps(steps)}<<END>>"}
    tool = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}
    said = []
    for messages in ([prompt], [prompt, call, tool]):
        connector = aiohttp.UnixConnector(str(gateway.socket))
        body = {"model": "m", "max_tokens": 9, "messages": messages, "tools": [{"name": "Bash"}]}
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.post("http://gateway/v1/messages", headers={"x-api-key": token}, json=body) as answer,
        ):
            message = await answer.json()
            said.append((message["stop_reason"], message["content"][0].get("text")))
    assert said == [("tool_use", None), ("end_turn", "done")]
