"""One channel to the server, and how calls go over it: tokens, deadlines, request ids, retries."""

from __future__ import annotations

import asyncio
import random
import re
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message

from aiagent_client.errors import (
    ApiError,
    InvalidTokenError,
    InvalidUrlError,
    UnauthenticatedError,
    UnavailableError,
    error_from_rpc,
)
from aiagent_client.tokens import TokenSource

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT: Final = 30.0
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_ATTEMPTS: Final = 5
_FIRST_DELAY: Final = 0.2
_MAX_DELAY: Final = 5.0
# What a header may carry without blanks: more than RFC 6750 lets a token be made of, and nothing that gRPC refuses.
_TOKEN: Final = re.compile(r"[!-~]+")
_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: what a gRPC channel needs to know of its URL."""

    url: str
    target: str
    secure: bool
    host: str


def parse_url(url: str) -> Address:
    """Reads `http://host:port` (plain text) or `https://host[:port]` (TLS). Raises InvalidUrlError."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        url.encode()
    except ValueError as error:
        raise InvalidUrlError(f"not a URL: {url!r}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidUrlError(f"not a server's URL: {url!r}; it looks like http://host:8080 or https://host")
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise InvalidUrlError(f"a server's URL has a host and a port only: {url!r}")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = f"{parts.scheme}://{host}" + ("" if port == (443 if secure else 80) else f":{port}")
    return Address(url=shown, target=f"{host}:{port}", secure=secure, host=parts.hostname)


def open_channel(address: Address, root_certificates: bytes | None = None) -> grpc.aio.Channel:
    """Opens a channel; it connects with the first call, and again whenever the connection was lost."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A peer that vanished without a word is noticed by pings while a call is open.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.primary_user_agent", f"aiagent-python/{package_version()}"),
        # Clients in one process share no connections, so that one's trouble is not another's.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if address.host in _LOOPBACK:
        options.append(("grpc.enable_http_proxy", 0))
    if address.secure:
        tls = grpc.ssl_channel_credentials(root_certificates=root_certificates)
        return grpc.aio.secure_channel(address.target, tls, options=options)
    return grpc.aio.insecure_channel(address.target, options=options)


def package_version() -> str:
    """Returns the version of the installed package."""
    try:
        return metadata.version("ai-agent-api")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def new_request_id() -> str:
    """Returns an id for a call or a mutation."""
    return uuid.uuid4().hex


def backoff(attempt: int, at_least: float | None = None) -> float:
    """Returns how many seconds to wait before the attempt after this one (from 1): exponential, jittered, bounded."""
    delay = min(_MAX_DELAY, _FIRST_DELAY * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
    return min(30.0, max(delay, at_least or 0.0))


class Connection:
    """Calls methods of stubs on one channel, with the caller's token."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.channel = channel
        self.timeout = timeout
        self.tokens: TokenSource | None = None

    async def call[RequestT: Message, ResponseT](
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float | None = None,
        anonymous: bool = False,
        repeatable: bool = True,
    ) -> ResponseT:
        """Calls a method that takes one message and returns one.

        A `request_id` field left empty is filled in. UNAVAILABLE is tried again, with the same request id, at most
        four times and not beyond the deadline; a token that the server refuses is renewed once. `timeout` is in
        seconds, for all attempts together. Raises ApiError, NotLoggedInError.
        """
        if "request_id" in request.DESCRIPTOR.fields_by_name and not getattr(request, "request_id"):  # noqa: B009
            request.request_id = new_request_id()  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        end = loop.time() + (self.timeout if timeout is None else timeout)
        call_id = new_request_id()
        rejected: str | None = None
        attempt = 1
        while True:
            token = None if anonymous else await self.token(rejected)
            try:
                return await method(
                    request, timeout=max(0.001, end - loop.time()), metadata=call_metadata(call_id, token)
                )
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error, call_id)
            if isinstance(failure, UnauthenticatedError) and token is not None and rejected is None:
                rejected = token
                continue
            delay = backoff(attempt, failure.retry_after)
            if not isinstance(failure, UnavailableError) or not repeatable:
                raise failure
            if attempt >= _ATTEMPTS or loop.time() + delay >= end:
                raise failure
            await asyncio.sleep(delay)
            attempt += 1

    async def token(self, rejected: str | None = None) -> str | None:
        """Returns the access token to send; None on a client without credentials.

        Raises InvalidTokenError, and as TokenSource.token.
        """
        if self.tokens is None:
            return None
        token = await self.tokens.token(rejected)
        if not _TOKEN.fullmatch(token):
            raise InvalidTokenError("not a token: it holds characters that no header may carry")
        return token

    async def stream(
        self, open_call: Callable[[Metadata], Any], *, silence: float | None = None
    ) -> AsyncGenerator[Any]:
        """Yields the messages of one server stream; the token is renewed once if it is refused at the start.

        `silence` is how many seconds without a message end the stream with UnavailableError.
        Raises ApiError, NotLoggedInError.
        """
        call_id = new_request_id()
        rejected: str | None = None
        while True:
            token = await self.token(rejected)
            call = open_call(call_metadata(call_id, token))
            started = False
            try:
                while True:
                    async with asyncio.timeout(silence):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        return
                    started = True
                    yield message
            except TimeoutError as error:
                raise UnavailableError(
                    f"nothing came from the server for {silence:.0f} seconds",
                    code=grpc.StatusCode.UNAVAILABLE,
                    request_id=call_id,
                ) from error
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error, call_id)
                if started or rejected or token is None or not isinstance(failure, UnauthenticatedError):
                    raise failure from None
                rejected = token
            finally:
                call.cancel()


def call_metadata(call_id: str, token: str | None) -> Metadata:
    """Returns the metadata of a call."""
    found: Metadata = (("x-request-id", call_id),)
    return found if token is None else (*found, ("authorization", f"Bearer {token}"))


def is_transport_failure(error: ApiError) -> bool:
    """Returns whether a stream ended because the connection did, not because a service said so."""
    return not error.reason and error.code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    )
