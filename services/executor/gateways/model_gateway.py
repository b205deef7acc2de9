"""The model gateway: a loopback proxy that keeps the key.

An agent shows the gateway a token that is worth nothing elsewhere; the gateway swaps in the real key and streams the
answer through. Without a key it hands the call to the offline model. It counts tokens as they pass.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiohttp import web

_log = structlog.get_logger(__name__)
# What an agent needs. With the key behind the gateway, more would be the account's files, batches and other users.
_SERVED = re.compile(r"HEAD /|POST /v1/messages(/count_tokens)?|GET /v1/models(/[A-Za-z0-9._-]+)?")
_MAX_REQUEST_BYTES = 64 * 1024 * 1024
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

Offline = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Meter:
    """What one agent has used so far."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


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
        self._meters: dict[str, Meter] = {}
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None

    def admit(self) -> tuple[str, Meter]:
        """Makes a token for an agent, and its meter."""
        token = f"agent-{secrets.token_urlsafe(24)}"
        self._meters[token] = Meter()
        return token, self._meters[token]

    def dismiss(self, token: str) -> None:
        """Ends a token."""
        self._meters.pop(token, None)

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
        meter = self._meters.get(_token(request))
        if meter is None:
            return _error(401, "authentication_error", "this token is not known")
        if not _SERVED.fullmatch(f"{request.method} {request.rel_url.raw_path}"):
            return _error(404, "not_found_error", "the gateway serves messages, and nothing else of the API")
        if request.method != "POST" and self._offline is not None:
            return web.json_response({})
        meter.calls += 1
        if self._offline is not None:
            try:
                body = await request.json()
            except ValueError:
                return _error(400, "invalid_request_error", "the body is not JSON")
            return await self._offline(request, body)
        try:
            return await self._forward(request, meter)
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("model API cannot be reached", error=type(error).__name__)
            return _error(502, "api_error", "the model API cannot be reached")

    async def _forward(self, request: web.Request, meter: Meter) -> web.StreamResponse:
        if self._client is None:
            raise AssertionError("not started")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers["x-api-key"] = self._api_key
        url = f"{self._base_url}{request.path_qs}"
        async with self._client.request(
            request.method, url, headers=headers, data=await request.read(), allow_redirects=False
        ) as upstream:
            answer = web.StreamResponse(status=upstream.status)
            for name, value in upstream.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    answer.headers[name] = value
            await answer.prepare(request)
            async for chunk in upstream.content.iter_any():
                _count(meter, chunk)
                await answer.write(chunk)
            await answer.write_eof()
            return answer


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


def _count(meter: Meter, chunk: bytes) -> None:
    """Counts the usage that a piece of a stream reports; one cut in two is missed, the CLI's own count is not."""
    for line in chunk.split(b"\n"):
        if line.startswith(b"data:") and b'"usage"' in line:
            try:
                event = json.loads(line[5:])
            except ValueError:
                continue
            usage = event.get("usage") or event.get("message", {}).get("usage") or {}
            meter.input_tokens += usage.get("input_tokens") or 0
            meter.output_tokens += usage.get("output_tokens") or 0


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)
