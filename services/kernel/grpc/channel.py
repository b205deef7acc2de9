"""Channels to other services: each call carries the request id and a fresh service token, and inherits the deadline.

The channel is wrapped instead of intercepted: interceptors of grpc.aio put a task and a generator between the caller
and each message of a stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Final

import grpc

from services.kernel import context
from services.kernel.grpc.server import MAX_MESSAGE_BYTES
from services.kernel.grpc.status import REQUEST_ID_KEY
from services.kernel.identity.service_tokens import ServiceTokenSigner
from services.kernel.ids import new_id

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Without this, channels of one process to one target share a connection, and its fate.
    ("grpc.use_local_subchannel_pool", 1),
)
_BALANCED: Final[dict[str, Any]] = {"loadBalancingConfig": [{"round_robin": {}}]}
# Only UNAVAILABLE is tried again (AIP-194). It does not tell whether the call was carried out: a connection that breaks
# while the answer is awaited is UNAVAILABLE, too.
_AGAIN: Final[dict[str, Any]] = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_Metadata = list[tuple[str, str | bytes]]


def replicas(addresses: Sequence[str]) -> str:
    """One target for several replicas: IPv4 addresses with ports, or a single name that resolves to all of them."""
    return addresses[0] if len(addresses) == 1 else "ipv4:" + ",".join(addresses)


def open_channel(
    target: str,
    *,
    signer: ServiceTokenSigner | None,
    audience: str,
    forward_caller: bool = False,
    balanced: bool = False,
    repeatable: Collection[str] = (),
) -> grpc.aio.Channel:
    """Opens a channel; nothing is sent before the first call.

    Args:
        target: `host:port`, or anything gRPC resolves.
        signer: this service's signer; None for a service whose methods are public.
        audience: name of the service behind the target.
        forward_caller: whether calls are made on behalf of the current end user, if there is one.
        balanced: whether the target is several replicas (see `replicas`): calls go to them in turn.
        repeatable: full names of the services all of whose methods may be carried out twice: their calls are made again
            when they end with UNAVAILABLE. Others never are, once they may have left this process.
    """
    return _ServiceChannel(
        grpc.aio.insecure_channel(target, options=[*_OPTIONS, *_service_config(balanced, repeatable)]),
        signer=signer,
        audience=audience,
        forward_caller=forward_caller,
    )


def _service_config(balanced: bool, repeatable: Collection[str]) -> list[tuple[str, str]]:
    config = dict(_BALANCED) if balanced else {}
    if repeatable:
        names = [{"service": name} for name in repeatable]
        config["methodConfig"] = [{"name": names, "retryPolicy": _AGAIN}]
    return [("grpc.service_config", json.dumps(config))] if config else []


class _ServiceChannel(grpc.aio.Channel):
    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        signer: ServiceTokenSigner | None,
        audience: str,
        forward_caller: bool,
    ) -> None:
        self._channel = channel
        self._signer = signer
        self._audience = audience
        self._forward_caller = forward_caller

    def _metadata(self, given: Any) -> _Metadata:
        metadata: _Metadata = [(key, value) for key, value in given or ()]
        metadata.append((REQUEST_ID_KEY, context.current_request_id() or str(new_id())))
        if self._signer is not None:
            caller = context.caller.get() if self._forward_caller else None
            metadata.append(("authorization", f"Bearer {self._signer.sign(self._audience, caller)}"))
        return metadata

    def _unary(self, multicallable: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, *, timeout: float | None = None, metadata: Any = None, **more: Any) -> Any:
            remaining = context.remaining_seconds()
            if remaining is not None:
                timeout = max(0.0, remaining if timeout is None else min(timeout, remaining))
            return multicallable(request, timeout=timeout, metadata=self._metadata(metadata), **more)

        return call

    def _stream(self, multicallable: Callable[..., Any]) -> Callable[..., Any]:
        # A stream may outlive the call that opened it: it has the deadline that it was given.
        def call(request: Any = None, timeout: float | None = None, metadata: Any = None, **more: Any) -> Any:
            return multicallable(request, timeout=timeout, metadata=self._metadata(metadata), **more)

        return call

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._unary(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._stream(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._stream(self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._stream(self._channel.stream_stream(*arguments, **options))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> _ServiceChannel:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._channel.__aexit__(exc_type, exc_val, exc_tb)
