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

_MEBIBYTE = 1024 * 1024


def any_of(message: object) -> Any:
    """Packs a message."""
    return Any.pack(message)  # type: ignore[arg-type]


def address(target: str) -> Address:
    """The address of `host:port`; an IPv6 host may stand in brackets."""
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    return Address(socket_address=SocketAddress(address=host, port_value=int(port), ipv4_compat=host == "::"))


def http2(*, streams: int | None = None) -> Http2ProtocolOptions:
    """HTTP/2 with windows for large messages, and pings that find dead peers.

    Args:
        streams: how many calls a client may have open on one connection.
    """
    return Http2ProtocolOptions(
        max_concurrent_streams=streams,
        connection_keepalive=KeepaliveSettings(interval=timedelta(seconds=20), timeout=timedelta(seconds=10)),
        initial_stream_window_size=_MEBIBYTE,
        initial_connection_window_size=16 * _MEBIBYTE,
    )


def service(name: str, targets: Sequence[str]) -> Cluster:
    """The replicas of a service, asked by the standard health service whether they serve.

    A replica that drains gets no new calls; those it has go on to their end.
    """
    cluster = _cluster(name, targets)
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2())
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
