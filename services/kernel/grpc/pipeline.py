"""What happens around every handler, in one order:

request id → logging → metrics → error mapping → drain → readiness → authentication → validation → handler

The wrapper of a method is built once, when the method is first called, so that a message of a stream costs no more
than its validation.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from services.kernel import context
from services.kernel.errors import ErrorKind, ServiceError, invalid_argument, unavailable
from services.kernel.grpc.authentication import Authenticator
from services.kernel.grpc.status import CODES, REQUEST_ID_KEY, abortable, internal_error, to_status
from services.kernel.grpc.validation import RequestValidator
from services.kernel.ids import new_id
from services.kernel.lifecycle import Drain
from services.kernel.telemetry import GRPC_REQUEST_SECONDS, GRPC_REQUESTS

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Probes: they are not logged, and they neither hold up a drain nor are refused by it.
_INFRASTRUCTURE: Final = ("/grpc.health.v1.", "/grpc.reflection.")
_log = structlog.get_logger("grpc.server")


class _Unreadable:
    """Stands for a request that is no message of its type."""


type Handler = grpc.RpcMethodHandler[Any, Any]
type Context = grpc.aio.ServicerContext[Any, Any]


async def accept_stream(servicer_context: Context) -> None:
    """Sends the response's initial metadata now, before there is a first message.

    A streaming handler calls it once the call is accepted; otherwise the metadata go with the first message, and a
    refusal is still a plain error over HTTP. Calling it again does nothing.
    """
    state = context.call_state.get()
    if isinstance(state, _Call):
        await state.send_headers(servicer_context)


def end_if_unread(seconds: float, error: Callable[[], ServiceError]) -> None:
    """Ends the current call's response stream when one response could not be sent for so long.

    A streaming handler calls it before its first response. What it holds is let go at once; the client finds the error
    behind what it has not read, whenever it reads on.

    Args:
        seconds: How long a response may wait for its client.
        error: Makes the error that the stream ends with.
    """
    state = context.call_state.get()
    if isinstance(state, _Call):
        state.unread_seconds, state.unread_error = seconds, error


@dataclass(slots=True)
class _Call(context.CallState):
    request_id: str = ""
    headers_sent: bool = False
    unread_seconds: float | None = None
    unread_error: Callable[[], ServiceError] | None = None

    async def send_headers(self, servicer_context: Context) -> None:
        if not self.headers_sent:
            self.headers_sent = True
            await servicer_context.send_initial_metadata(((REQUEST_ID_KEY, self.request_id),))


class Pipeline(grpc.aio.ServerInterceptor):
    """The only server interceptor."""

    def __init__(
        self, *, domain: str, authenticator: Authenticator, validator: RequestValidator, drain: Drain
    ) -> None:
        """Args: domain: of errors that the kernel raises for the service, `<service>.aiagent`."""
        self._domain = domain
        self._authenticator = authenticator
        self._validator = validator
        self._drain = drain
        self.admits = True
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the wrapped handler; None (UNIMPLEMENTED) for a method that no servicer has."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        behavior = _behavior(handler)
        if not (inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)):
            raise TypeError(f"{method}: a synchronous handler would stop the event loop")
        run = self._runner(method)
        body = self._response_stream(behavior) if handler.response_streaming else self._response(behavior)

        async def call(request: Any, servicer_context: Context) -> Any:
            return await run(body, request, servicer_context)

        factories = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        factory: Callable[..., Handler] = factories[handler.request_streaming, handler.response_streaming]
        return factory(
            call,
            request_deserializer=_reader(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _runner(self, method: str) -> Callable[..., Awaitable[Any]]:
        probe = method.startswith(_INFRASTRUCTURE)
        _, service_name, method_name = method.split("/")
        seconds = GRPC_REQUEST_SECONDS.labels(service_name, method_name)

        async def run(body: Callable[..., Awaitable[Any]], request: Any, servicer_context: Context) -> Any:
            started = time.monotonic()
            metadata = _metadata(servicer_context)
            call = _begin(method, metadata.get(REQUEST_ID_KEY, ""), servicer_context, started)
            code = "OK"
            if not probe:
                self._drain.enter()
            try:
                if self._drain.draining and not probe:
                    raise unavailable("DRAINING", "the server is shutting down", domain=self._domain)
                if not self.admits and not probe:
                    raise unavailable(
                        "DATABASE_UNAVAILABLE", "the service waits for its database", retry_after_seconds=1.0
                    )
                await self._authenticator.authenticate(method, metadata.get("authorization", ""))
                return await body(self._validated(request), servicer_context, call)
            except grpc.aio.AbortError:
                # The handler chose a status itself.
                code = _name(servicer_context)
                raise
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except ServiceError as error:
                code = error.kind.value
                if error.kind is ErrorKind.INTERNAL:
                    _log.exception("internal error")
                await _abort(error, call, servicer_context)
            except Exception as error:
                code = "INTERNAL"
                _log.exception("unexpected error", error=type(error).__name__)
                await _abort(internal_error(self._domain), call, servicer_context)
            finally:
                call.active = False
                took = time.monotonic() - started
                GRPC_REQUESTS.labels(service_name, method_name, code).inc()
                seconds.observe(took)
                if not probe:
                    self._drain.leave()
                    _log_end(code, took)

        return run

    def _validated(self, request: Any) -> Any:
        if hasattr(request, "__aiter__"):
            return self._validated_stream(request)
        self._check(request)
        return request

    async def _validated_stream(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self._check(request)
            yield request

    def _check(self, request: Any) -> None:
        if isinstance(request, _Unreadable):
            raise invalid_argument(
                "INVALID_REQUEST",
                "the request cannot be read: it is damaged, or nested too deeply",
                domain=self._domain,
            )
        self._validator.check(request)

    def _response(self, behavior: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def respond(request: Any, servicer_context: Context, call: _Call) -> Any:
            response = await behavior(request, servicer_context)
            await call.send_headers(servicer_context)
            return response

        return respond

    def _response_stream(self, behavior: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        if not inspect.isasyncgenfunction(behavior):

            async def write_itself(request: Any, servicer_context: Context, call: _Call) -> None:
                await call.send_headers(servicer_context)
                await behavior(request, servicer_context)

            return write_itself

        async def respond(request: Any, servicer_context: Context, call: _Call) -> None:
            loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
            response = None
            try:
                async with limit, aclosing(behavior(request, servicer_context)) as responses:
                    async for response in responses:
                        if not call.headers_sent:
                            await call.send_headers(servicer_context)
                        if call.unread_seconds is None:
                            await servicer_context.write(response)
                            continue
                        limit.reschedule(loop.time() + call.unread_seconds)
                        await servicer_context.write(response)
                        limit.reschedule(None)
            except TimeoutError:
                if not limit.expired():
                    raise
            if limit.expired() and call.unread_error is not None:
                # Telling the client may take as long as it does not read.
                del response
                raise call.unread_error()
            await call.send_headers(servicer_context)

        return respond


def _reader(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Lets a request that cannot be read go on to where its error is mapped; gRPC itself would answer UNKNOWN with the
    library's own words."""
    if read is None:
        return None

    def try_to_read(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _Unreadable()

    return try_to_read


def _behavior(handler: Handler) -> Callable[..., Any]:
    found = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if found is None:
        raise TypeError("a handler without behaviour")
    return found


def _metadata(servicer_context: Context) -> dict[str, str]:
    # The last value of a key wins; binary values are not looked at.
    return {
        key: value for key, value in servicer_context.invocation_metadata() or () if isinstance(value, str)
    }


def _begin(method: str, sent_id: str, servicer_context: Context, started: float) -> _Call:
    known = sent_id if _REQUEST_ID.fullmatch(sent_id) else str(new_id())
    # None without a deadline, whatever the stubs say.
    remaining: float | None = servicer_context.time_remaining()
    call = _Call(
        method=method,
        deadline=started + remaining if remaining is not None else None,
        request_id=known,
    )
    context.request_id.set(known)
    context.call_state.set(call)
    structlog.contextvars.bind_contextvars(request_id=known, method=method)
    return call


async def _abort(error: ServiceError, call: _Call, servicer_context: Context) -> None:
    servicer_context.set_trailing_metadata(())
    status = abortable(to_status(error, call.request_id))
    if not call.headers_sent:
        # Nothing was sent yet: the whole answer is trailers, and carries the id itself.
        trailers = (*status.trailing_metadata, (REQUEST_ID_KEY, call.request_id))
        await servicer_context.abort(CODES[error.kind], status.details, trailers)
    await servicer_context.abort_with_status(status)


def _name(servicer_context: Context) -> str:
    # The stubs promise a StatusCode; grpc.aio keeps the number.
    code: Any = servicer_context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")


def _log_end(code: str, took: float) -> None:
    caller = context.caller.get()
    _log.info(
        "call",
        code=code,
        duration_ms=round(took * 1000, 2),
        **({"user_id": str(caller.user_id)} if caller is not None else {}),
        **({"service": name} if (name := context.service.get()) else {}),
    )
