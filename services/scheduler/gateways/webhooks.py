"""Requests to the receivers of webhooks, whose URLs users choose: nothing of them is trusted.

The name is resolved here, every address it has is judged, and the connection goes to one that was judged: a name that
leads elsewhere when it is asked again (DNS rebinding) is not asked again. TLS and the header `host` keep the name. No
redirect is followed, no proxy of the environment used, nothing decompressed, and of an answer little is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from typing import Final

import httpcore

from services.scheduler.domain.receivers import AddressRules, ReceiverFault, parse
from services.scheduler.usecases.webhooks.ports import Answer

CONNECT_SECONDS: Final = 5.0
"""For the name, the connection and TLS."""
TOTAL_SECONDS: Final = 15.0
"""From the beginning to the status of the answer."""
BODY_SECONDS: Final = 2.0
"""For the beginning of the body, once there is a status: that is what counts."""
READ_BYTES: Final = 4096
"""Of an answer's body."""
KEPT_BYTES: Final = 1024
"""Of an answer's body, for its reader."""
_USER_AGENT: Final = "aiagent-webhooks/1"
_ADDRESSES_TRIED: Final = 3
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_REDIRECTS: Final = range(300, 400)
_TAKEN: Final = range(200, 300)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the IP addresses of a name, raises OSError."""


class _Unresolved(Exception):
    """The name has no address."""


class WebhookPost:
    """See `usecases.webhooks.ports.Post`."""

    def __init__(
        self,
        rules: AddressRules,
        *,
        places: int,
        resolve: Resolve | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        body_seconds: float = BODY_SECONDS,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Composes it; nothing is opened before the first request.

        Args:
            rules: Where it may connect to.
            places: How many requests there are at once.
            resolve: Asks for the addresses of a name; the system by default.
            connect_seconds: See `CONNECT_SECONDS`.
            total_seconds: See `TOTAL_SECONDS`.
            body_seconds: See `BODY_SECONDS`.
            context: For TLS; the system's authorities by default.
        """
        self._connect_seconds = connect_seconds
        self._total_seconds = total_seconds
        self._body_seconds = body_seconds
        self._given_context = context
        self._backend = _JudgedBackend(rules, resolve or _System(places), connect_seconds)

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Sends a POST request; whatever goes wrong is in the answer."""
        began = time.monotonic()
        try:
            answer = await self._post(url, headers, body)
        except ReceiverFault as fault:
            name = "ADDRESS_NOT_ALLOWED" if fault.rule == "ADDRESS" else "URL_NOT_ALLOWED"
            answer = Answer(error=name, error_message=f"the URL {fault}")
        except _Unresolved:
            answer = Answer(error="NAME_NOT_RESOLVED", error_message="the host has no address")
        except (TimeoutError, httpcore.TimeoutException):
            answer = Answer(error="TIMEOUT", error_message="no answer came in time")
        except (httpcore.ConnectError, OSError) as error:
            answer = _unconnected(error.__context__)
        except (httpcore.NetworkError, httpcore.ProtocolError):
            answer = Answer(
                error="PROTOCOL_ERROR", error_message="the connection ended, or what came was no HTTP answer"
            )
        return replace(answer, duration=timedelta(seconds=time.monotonic() - began))

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        receiver = parse(url)
        sent = {
            "host": receiver.host_header,
            "user-agent": _USER_AGENT,
            "accept-encoding": "identity",
            "content-length": str(len(body)),
            "connection": "close",
            **headers,
        }
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._context, max_connections=1, http2=False, network_backend=self._backend
        )
        request = pool.stream(
            "POST",
            httpcore.URL(
                scheme=receiver.scheme, host=receiver.host, port=receiver.port, target=receiver.target
            ),
            headers=list(sent.items()),
            content=body,
            extensions={"timeout": {"connect": self._connect_seconds}},
        )
        async with asyncio.timeout(self._total_seconds) as limit, pool, request as response:
            # What counts is there: the rest has a time of its own.
            limit.reschedule(asyncio.get_running_loop().time() + 2 * self._body_seconds)
            read = await self._beginning(response)
            return _judge(response.status, response.headers, read)

    async def _beginning(self, response: httpcore.Response) -> str:
        read = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in response.aiter_stream():
                    read += chunk
                    if len(read) >= READ_BYTES:
                        break
        except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            # The receiver has said what counts.
            pass
        # PostgreSQL has no U+0000 in its text.
        return bytes(read[:KEPT_BYTES]).decode(errors="replace").replace("\0", "\ufffd")

    @cached_property
    def _context(self) -> ssl.SSLContext:
        # Reading the authorities takes a while: not before something is sent.
        return self._given_context or ssl.create_default_context()


class _JudgedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that the rules allow, and to no others."""

    def __init__(self, rules: AddressRules, resolve: Resolve, connect_seconds: float) -> None:
        self._rules = rules
        self._resolve = resolve
        self._connect_seconds = connect_seconds
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolves, judges, connects; the addresses of a name share the time."""
        async with asyncio.timeout(self._connect_seconds):
            addresses = (await self._judged(host, port))[:_ADDRESSES_TRIED]
            share = self._connect_seconds / len(addresses)
            for address in addresses[:-1]:
                try:
                    return await self._inner.connect_tcp(address, port, share)
                except (httpcore.ConnectError, httpcore.ConnectTimeout):
                    continue
            return await self._inner.connect_tcp(addresses[-1], port, share)

    async def _judged(self, host: str, port: int) -> list[str]:
        try:
            found: Sequence[str] = [str(ipaddress.ip_address(host))]
        except ValueError:
            try:
                found = list(dict.fromkeys(await self._resolve(host, port)))
            except (OSError, UnicodeError):
                raise _Unresolved from None
        if not found:
            raise _Unresolved
        # One that is not allowed refuses them all: whoever gives such a name its addresses has no good reason to.
        if not all(self._rules.allows(ipaddress.ip_address(address)) for address in found):
            raise ReceiverFault("ADDRESS", "leads to an address that the public internet does not know")
        return list(found)


class _System:
    """The system's resolver, in threads of its own, which a process that ends does not wait for.

    A name server that is silent holds a thread longer than anybody waits for it; of these there are so many at most.
    """

    def __init__(self, places: int) -> None:
        self._free = asyncio.Semaphore(max(1, places))

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Resolves a name."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def end(found: Sequence[str], error: Exception | None) -> None:
            self._free.release()
            if answer.done():
                return
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

        def ask() -> None:
            found: Sequence[str] = ()
            failure: Exception | None = None
            try:
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = [str(entry[4][0]) for entry in entries]
            except (OSError, UnicodeError) as error:
                failure = error
            # The loop may be gone by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end, found, failure)

        threading.Thread(target=ask, name="webhook-name", daemon=True).start()
        return await answer


def _unconnected(cause: BaseException | None) -> Answer:
    # The library tells of a connection and of TLS by the same error.
    if isinstance(cause, ssl.SSLError):
        why = getattr(cause, "verify_message", "") or cause.reason
        return Answer(error="TLS_FAILED", error_message=f"TLS failed: {why}")
    return Answer(error="CONNECT_FAILED", error_message="the host cannot be connected to")


def _judge(status: int, headers: Sequence[tuple[bytes, bytes]], body: str) -> Answer:
    if status in _TAKEN:
        return Answer(status=status, body=body)
    if status in _REDIRECTS:
        return Answer(
            status=status, error="REDIRECTED", error_message="redirects are not followed", body=body
        )
    retry_after = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    phrase = next((known.phrase for known in HTTPStatus if known == status), "")
    return Answer(
        status=status,
        error="REFUSED",
        error_message=f"the receiver answered {status} {phrase}".rstrip(),
        body=body,
        retry_after=_pause(retry_after.decode("latin-1").strip()),
    )


def _pause(text: str) -> timedelta | None:
    """Reads the header `retry-after`: seconds or a date (RFC 9110, section 10.2.3)."""
    if _SECONDS.fullmatch(text):
        return timedelta(seconds=int(text))
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)
