"""Where Envoy finds the services: their replicas, and how it tells which of them serve."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    Http2ProtocolOptions,
    KeepaliveSettings,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

_KIBIBYTE = 1024
CLIENT_WINDOW_BYTES = 512 * _KIBIBYTE
"""What a client may send ahead on one stream: far away, it waits for each grant. Envoy keeps as much of what the client
does not read."""
CLIENT_CONNECTION_WINDOW_BYTES = 16 * 1024 * _KIBIBYTE
CALLS_PER_CLIENT = 2000
"""Calls that a client may have open on one connection."""
SERVICE_WINDOW_BYTES = 128 * _KIBIBYTE
"""What a service may send ahead on one stream: it is near, and what a client does not read stays here, too."""
CALLS_PER_CONNECTION = 1000
"""Calls that share a connection to a service; for more, Envoy opens another one."""


def any_of(message: object) -> Any:
    """Packs a message."""
    return Any.pack(message)  # type: ignore[arg-type]


def address(target: str) -> Address:
    """The address of `host:port`; an IPv6 host may stand in brackets."""
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    return Address(socket_address=SocketAddress(address=host, port_value=int(port), ipv4_compat=host == "::"))


def http2(*, streams: int, stream_window_bytes: int, connection_window_bytes: int) -> Http2ProtocolOptions:
    """HTTP/2 with pings that find dead peers.

    What nobody takes from a stream stays in its window, and counts against the connection's too.

    Args:
        streams: how many calls may be open on one connection.
        stream_window_bytes: what the peer may send ahead on each.
        connection_window_bytes: and on all of them.
    """
    return Http2ProtocolOptions(
        max_concurrent_streams=streams,
        connection_keepalive=KeepaliveSettings(interval=timedelta(seconds=20), timeout=timedelta(seconds=10)),
        initial_stream_window_size=stream_window_bytes,
        initial_connection_window_size=connection_window_bytes,
    )


def from_clients() -> Http2ProtocolOptions:
    """HTTP/2 of the public listener: a client that fills its connection waits for itself alone."""
    return http2(
        streams=CALLS_PER_CLIENT,
        stream_window_bytes=CLIENT_WINDOW_BYTES,
        connection_window_bytes=CLIENT_CONNECTION_WINDOW_BYTES,
    )


def to_services() -> Http2ProtocolOptions:
    """HTTP/2 to a service, whose connections all clients share.

    The connection's window is that of all its streams together. Were it less, a few clients that have stopped reading
    would fill it, and silence everybody else's answers. It is no memory: only what is left unread is.
    """
    return http2(
        streams=CALLS_PER_CONNECTION,
        stream_window_bytes=SERVICE_WINDOW_BYTES,
        connection_window_bytes=CALLS_PER_CONNECTION * SERVICE_WINDOW_BYTES,
    )


def service(name: str, targets: Sequence[str]) -> Cluster:
    """The replicas of a service, asked by the standard health service whether they serve.

    A replica that drains gets no new calls; those it has go on to their end.
    """
    cluster = _cluster(name, targets)
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=to_services())
    )
    cluster.typed_extension_protocol_options = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": any_of(options)
    }
    cluster.health_checks = [
        HealthCheck(
            timeout=timedelta(seconds=1),
            interval=timedelta(seconds=2),
            no_traffic_interval=timedelta(seconds=1),
            unhealthy_interval=timedelta(milliseconds=250),
            no_traffic_healthy_interval=timedelta(seconds=2),
            unhealthy_threshold=2,
            healthy_threshold=1,
            grpc_health_check=HealthCheckGrpcHealthCheck(),
        )
    ]
    return cluster


def listener_itself(target: str) -> Cluster:
    """The public listener as Envoy's own upstream: the key set comes through it, since auth speaks only gRPC."""
    return _cluster("self", [target])


def _cluster(name: str, targets: Sequence[str]) -> Cluster:
    limits = CircuitBreakersThresholds(
        max_connections=1024, max_pending_requests=10_000, max_requests=100_000
    )
    endpoints = [LbEndpoint(endpoint=Endpoint(address=address(target))) for target in targets]
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=2),
        circuit_breakers=CircuitBreakers(thresholds=[limits]),
        # Where none serves, say so at once instead of trying those that do not.
        common_lb_config=ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=0.0)),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
        ),
    )
