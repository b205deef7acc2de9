"""The model gateway: a loopback proxy that keeps the key.

An agent shows the gateway a token that is worth nothing elsewhere; the gateway swaps in the real key and streams the
answer through. Without a key it hands the call to the offline model. It puts what passes on the account of the turn
that runs, and lets nothing pass when none does, or when its budget is used up. What the API refuses for good it marks
as such, and keeps for whoever asks why the turn failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import Counter

from services.executor.gateways import model_refusals
from services.executor.gateways.metering import MOST_CALLS, Account, MeteredCall, most_usd
from services.executor.gateways.model_refusals import Refusal
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)
# What an agent needs. With the key behind the gateway, more would be the account's files, batches and other users.
_SERVED = re.compile(r"HEAD /|POST /v1/messages(/count_tokens)?|GET /v1/models(/[A-Za-z0-9._-]+)?")
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
    }
    | {"authorization", "x-api-key", "content-length", "content-encoding", "accept-encoding"}
)

# Of an answer the agent gets what it reads: the others tell whose key it is, and what is left of its limits.
_ANSWERED = frozenset({"content-type", "request-id", "retry-after", "retry-after-ms", "x-should-retry"})

Offline = Callable[[web.Request, dict[str, Any], Callable[[bytes], None]], Awaitable[web.StreamResponse]]


CALLS: Final = Counter(
    "aiagent_model_calls_total", "Calls of the model by agents.", ("model", "answer"), registry=registry
)
_NOTHING_LEFT: Final = (402, "billing_error", "the budget of this turn is used up")
_NO_TURN: Final = (403, "permission_error", "no turn of this agent is running")
# The name is the agent's word: it must not make series without end.
_MODEL: Final = re.compile(r'"model"\s*:\s*"(claude-[a-z0-9.-]{1,40})"')
_MOST_MODELS: Final = 50
_models: set[str] = set()


class ModelGateway:
    """The gateway of one executor: on a Unix socket and on a loopback port."""

    def __init__(self, path: Path, *, base_url: str, api_key: str, offline: Offline | None) -> None:
        """Prepares it.

        Args:
            path: The Unix socket to listen on.
            base_url: The model API.
            api_key: The key; empty when the offline model answers.
            offline: The offline model; None when the model API is used.
        """
        self.socket = path
        self.port = 0
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._offline = offline
        self._tokens: dict[str, Refusal | None] = {}
        self._accounts: dict[str, Account] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None

    def admit(self) -> str:
        """Makes a token for an agent."""
        token = f"agent-{secrets.token_urlsafe(24)}"
        self._tokens[token] = None
        self._slots[token] = asyncio.Semaphore(MOST_CALLS)
        return token

    def open_account(self, token: str, budget_usd: float = 0.0) -> Account:
        """Begins a turn of an agent: what it calls from now on is on this account, until that is closed.

        Args:
            token: The agent's.
            budget_usd: What the turn may spend in US dollars; 0 for no limit.
        """
        account = Account(budget_usd)
        if token in self._tokens:
            self._accounts[token] = account
        return account

    def take_refusal(self, token: str) -> Refusal | None:
        """Returns what was refused to an agent for good since the last call, and forgets it."""
        refusal = self._tokens.get(token)
        if refusal is not None:
            self._tokens[token] = None
        return refusal

    def dismiss(self, token: str) -> None:
        """Ends a token."""
        self._tokens.pop(token, None)
        self._accounts.pop(token, None)
        self._slots.pop(token, None)

    async def start(self) -> None:
        """Listens."""
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, _listening(self.socket)).start()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[-1][1]
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300),
            connector=aiohttp.TCPConnector(limit=256),
            auto_decompress=True,
        )

    async def stop(self) -> None:
        """Closes everything."""
        if self._client is not None:
            await self._client.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self.socket.unlink(missing_ok=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if _token(request) not in self._tokens:
            refused = _error(401, "authentication_error", "this token is not known")
            refused.headers.update([model_refusals.NO_RETRY])
            return refused
        if not _SERVED.fullmatch(f"{request.method} {request.rel_url.raw_path}"):
            return _error(404, "not_found_error", "the gateway serves messages, and nothing else of the API")
        if request.method != "POST" and self._offline is not None:
            return web.json_response({})
        # Before the body is read: each is held in memory until it is answered.
        async with self._slots[_token(request)]:
            return await self._call(request, await request.read())

    async def _call(self, request: web.Request, body: bytes) -> web.StreamResponse:
        account = self._accounts.get(_token(request))
        counted = request.method == "POST" and not request.path.endswith("/count_tokens")
        label, model = _model(body), model_refusals.asked_model(body)
        dearest = most_usd(model, body)
        admitted = account is not None and (await account.admit(dearest) if counted else not account.closed)
        if account is None or not admitted:
            answer = _error(*_NOTHING_LEFT) if account is not None and account.refused else _error(*_NO_TURN)
            answer.headers.update([model_refusals.NO_RETRY])
            if counted:
                CALLS.labels(label, str(answer.status)).inc()
            return answer
        if not counted:
            return await self._answer(request, body, None)
        call = account.begin(model, label, partial(_abort, request), dearest)
        try:
            answered = await self._answer(request, body, call)
        finally:
            call.done()
        CALLS.labels(label, str(answered.status)).inc()
        return answered

    async def _answer(
        self, request: web.Request, body: bytes, call: MeteredCall | None
    ) -> web.StreamResponse:
        if self._offline is not None:
            try:
                asked = json.loads(body)
            except (ValueError, RecursionError):
                return _error(400, "invalid_request_error", "the body is not JSON")
            seen = call.feed if call is not None else _unseen
            answer = await self._offline(request, asked, seen)
            if isinstance(answer, web.Response) and isinstance(answer.body, bytes):
                seen(answer.body)
                self._judge(request, answer, body, answer.body)
            return answer
        try:
            return await self._forward(request, body, call)
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("model API cannot be reached", error=type(error).__name__)
            return _error(502, "api_error", "the model API cannot be reached")

    async def _forward(
        self, request: web.Request, body: bytes, call: MeteredCall | None
    ) -> web.StreamResponse:
        if self._client is None:
            raise AssertionError("not started")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers["x-api-key"] = self._api_key
        url = f"{self._base_url}{request.path_qs}"
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as upstream:
            answer = web.StreamResponse(status=upstream.status)
            for name, value in upstream.headers.items():
                if name.lower() in _ANSWERED:
                    answer.headers[name] = value
            if call is not None and upstream.content_type != "text/event-stream":
                call.expect_document()
            seen = call.feed if call is not None else _unseen
            if upstream.status in model_refusals.FINAL_STATUSES:
                # A mistaken key would be tried for minutes.
                answer.headers.update([model_refusals.NO_RETRY])
            await answer.prepare(request)
            beginning = b""
            try:
                async for chunk in upstream.content.iter_any():
                    seen(chunk)
                    if upstream.status >= 400 and len(beginning) < model_refusals.MOST_BYTES:
                        beginning += chunk
                    await answer.write(chunk)
            except (aiohttp.ClientError, TimeoutError) as error:
                # The head is sent: another answer would be read as the rest of this one. A cut is what the CLI knows.
                _log.warning("model API broke off", error=type(error).__name__)
                _abort(request)
                return answer
            finally:
                self._judge(request, answer, body, beginning)
            await answer.write_eof()
            return answer

    def _judge(self, request: web.Request, answer: web.StreamResponse, body: bytes, said: bytes) -> None:
        """Keeps a refusal for the agent whose call it answers; one that is not sent yet is marked as the last word."""
        if answer.status < 400:
            return
        token = _token(request)
        refusal = model_refusals.read(answer.status, said, model_refusals.asked_model(body))
        if refusal is not None and token in self._tokens:
            self._tokens[token] = refusal
            _log.warning("the model API refuses", reason=refusal.reason, status=answer.status)
        if not answer.prepared and answer.status in model_refusals.FINAL_STATUSES:
            answer.headers.update([model_refusals.NO_RETRY])


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _unseen(_chunk: bytes) -> None:
    """For calls that cost nothing."""


def _listening(path: Path) -> socket.socket:
    """Binds a Unix socket that is its owner's alone; a path may be longer than the 107 bytes of an address."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o600)
    return made


def _token(request: web.Request) -> str:
    key = request.headers.get("x-api-key", "")
    if key:
        return key
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def _model(body: bytes) -> str:
    """The model that a body names, as a label; the head of the body is where every client has it."""
    found = _MODEL.search(body[:500].decode(errors="replace"))
    name = found.group(1) if found else "other"
    if name not in _models and len(_models) >= _MOST_MODELS:
        return "other"
    _models.add(name)
    return name


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)
