"""Builds Envoy's configuration: one public listener for gRPC, gRPC-Web and JSON, and the static pages.

What is not named here cannot be reached from outside: the executor and every internal RPC have no route.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter, ComparisonFilter, StatusCodeFilter
from envoy_data_plane.envoy.config.accesslog.v3 import ComparisonFilterOp as Op
from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    Http2ProtocolOptions,
    HttpUri,
    KeepaliveSettings,
    Pipe,
    RuntimeUInt32,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RedirectAction,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors, CorsPolicy
from envoy_data_plane.envoy.extensions.filters.http.grpc_json_transcoder.v3 import (
    GrpcJsonTranscoder,
    GrpcJsonTranscoderPrintOptions,
    GrpcJsonTranscoderRequestValidationOptions,
)
from envoy_data_plane.envoy.extensions.filters.http.grpc_web.v3 import GrpcWeb
from envoy_data_plane.envoy.extensions.filters.http.health_check.v3 import HealthCheck as HealthCheckFilter
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwksAsyncFetch,
    JwtAuthentication,
    JwtProvider,
    JwtRequirement,
    RemoteJwks,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

ROOT = Path(__file__).parents[2]
DESCRIPTORS = ROOT / "protos" / "gen" / "descriptors.binpb"
OPENAPI = ROOT / "protos" / "gen" / "openapi.json"
STATIC = Path(__file__).parent / "static"
MAX_BODY_BYTES = 16 * 1024 * 1024

SERVICES = {
    "auth": ("aiagent.auth.v1.AuthService",),
    "session": (
        "aiagent.session.v1.SessionService",
        "aiagent.session.v1.PermissionService",
        "aiagent.session.v1.WorkspaceService",
    ),
}
"""The services that may be called from outside, by the cluster that serves them."""
PUBLIC = (
    "/aiagent.auth.v1.AuthService/Register",
    "/aiagent.auth.v1.AuthService/Login",
    "/aiagent.auth.v1.AuthService/RefreshToken",
    "/aiagent.auth.v1.AuthService/Logout",
    "/aiagent.auth.v1.AuthService/GetJwks",
    "/api/v1/auth/register",
    "/api/v1/auth/login",
    "/api/v1/auth/refresh",
    "/api/v1/auth/logout",
    "/api/v1/openapi.json",
    "/.well-known/jwks.json",
    "/health",
)
"""Exact paths that need no token."""
PUBLIC_PREFIXES = ("/docs", "/redoc", "/static/", "/grpc.health.v1.Health/", "/grpc.reflection.")
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """What differs between environments.

    Attributes:
        host: Address of the public listener.
        port: Its port.
        endpoints: `host:port` of each replica, by cluster.
        admin_socket: Unix socket of the admin interface.
        origins: Origins that browsers may call from, as regular expressions.
    """

    host: str
    port: int
    endpoints: dict[str, Sequence[str]]
    admin_socket: Path
    origins: Sequence[str] = (r"https?://localhost(:\d+)?", r"https?://127\.0\.0\.1(:\d+)?")


def render(settings: EnvoySettings) -> str:
    """The configuration as JSON, which Envoy reads from a file."""
    return json.dumps(build(settings).to_dict(), indent=1)


def build(settings: EnvoySettings) -> Bootstrap:
    """The configuration as Envoy's own messages."""
    clusters = [_cluster(name, settings.endpoints[name]) for name in SERVICES]
    # The key set comes through the public listener itself: auth speaks gRPC, Envoy's fetcher plain HTTP.
    own = (
        f"127.0.0.1:{settings.port}"
        if settings.host in ("0.0.0.0", "::")
        else f"{settings.host}:{settings.port}"
    )
    clusters.append(_cluster("self", [own], grpc=False))
    return Bootstrap(
        admin=Admin(address=Address(pipe=Pipe(path=str(settings.admin_socket), mode=0o600))),
        static_resources=BootstrapStaticResources(listeners=[_listener(settings)], clusters=clusters),
    )


def _any(message: object) -> Any:
    return Any.pack(message)  # type: ignore[arg-type]


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(socket_address=SocketAddress(address=host, port_value=int(port)))


def _cluster(name: str, endpoints: Sequence[str], *, grpc: bool = True) -> Cluster:
    http2 = Http2ProtocolOptions(
        connection_keepalive=KeepaliveSettings(interval=timedelta(seconds=20), timeout=timedelta(seconds=10)),
        initial_stream_window_size=1024 * 1024,
        initial_connection_window_size=16 * 1024 * 1024,
    )
    limits = CircuitBreakersThresholds(
        max_connections=1024,
        max_pending_requests=10_000,
        max_requests=100_000,
    )
    cluster = Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=2),
        circuit_breakers=CircuitBreakers(thresholds=[limits]),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[
                LocalityLbEndpoints(
                    lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=_address(text))) for text in endpoints]
                )
            ],
        ),
    )
    if grpc:
        cluster.typed_extension_protocol_options = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _any(
                HttpProtocolOptions(
                    explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
                )
            )
        }
        cluster.health_checks = [
            HealthCheck(
                timeout=timedelta(seconds=1),
                interval=timedelta(seconds=2),
                no_traffic_interval=timedelta(seconds=1),
                unhealthy_interval=timedelta(milliseconds=250),
                unhealthy_threshold=2,
                healthy_threshold=1,
                grpc_health_check=HealthCheckGrpcHealthCheck(),
            )
        ]
    return cluster


def _filter(name: str, message: object) -> HttpFilter:
    return HttpFilter(name=f"envoy.filters.http.{name}", typed_config=_any(message))


def _listener(settings: EnvoySettings) -> Listener:
    mark = HeaderValueOption(header=HeaderValue(key="x-aiagent-local", value="1"))
    any_failure = AccessLogFilter(
        status_code_filter=StatusCodeFilter(
            comparison=ComparisonFilter(
                op=Op.GE, value=RuntimeUInt32(default_value=400, runtime_key="aiagent.local_reply")
            )
        )
    )
    manager = HttpConnectionManager(
        stat_prefix="public",
        route_config=_routes(settings),
        http_filters=[
            _filter(
                "lua",
                Lua(
                    default_source_code=DataSource(
                        inline_string=(Path(__file__).parent / "errors.lua").read_text(encoding="utf-8")
                    )
                ),
            ),
            _filter("cors", Cors()),
            _filter("health_check", _health()),
            _filter("grpc_web", GrpcWeb()),
            _filter("jwt_authn", _tokens()),
            _filter("grpc_json_transcoder", _transcoder()),
            _filter("router", Router()),
        ],
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=2000,
            initial_stream_window_size=1024 * 1024,
            initial_connection_window_size=16 * 1024 * 1024,
        ),
        use_remote_address=True,
        request_headers_timeout=timedelta(seconds=15),
        stream_idle_timeout=timedelta(seconds=300),
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        local_reply_config=LocalReplyConfig(
            mappers=[ResponseMapper(filter=any_failure, headers_to_add=[mark])]
        ),
        server_name="aiagent",
        normalize_path=True,
        merge_slashes=True,
    )
    return Listener(
        name="public",
        address=_address(f"{settings.host}:{settings.port}"),
        per_connection_buffer_limit_bytes=MAX_BODY_BYTES + 65536,
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(name="envoy.filters.network.http_connection_manager", typed_config=_any(manager))
                ]
            )
        ],
    )


def _health() -> HealthCheckFilter:
    return HealthCheckFilter(
        pass_through_mode=False,
        headers=[HeaderMatcher(name=":path", string_match=StringMatcher(exact="/health"))],
        cluster_min_healthy_percentages={name: Percent(value=1.0) for name in SERVICES},
    )


def _tokens() -> JwtAuthentication:
    provider = JwtProvider(
        issuer="aiagent",
        audiences=["aiagent-api"],
        forward=True,
        clock_skew_seconds=5,
        remote_jwks=RemoteJwks(
            http_uri=HttpUri(
                uri="http://self/.well-known/jwks.json", cluster="self", timeout=timedelta(seconds=2)
            ),
            cache_duration=timedelta(seconds=300),
            async_fetch=JwksAsyncFetch(fast_listener=True, failed_refetch_duration=timedelta(seconds=1)),
        ),
    )
    public = [RequirementRule(match=RouteMatch(path=path)) for path in (*PUBLIC, "/")]
    public += [RequirementRule(match=RouteMatch(prefix=prefix)) for prefix in PUBLIC_PREFIXES]
    return JwtAuthentication(
        providers={"auth": provider},
        rules=[
            *public,
            RequirementRule(match=RouteMatch(prefix="/"), requires=JwtRequirement(provider_name="auth")),
        ],
        bypass_cors_preflight=True,
    )


def _transcoder() -> GrpcJsonTranscoder:
    return GrpcJsonTranscoder(
        proto_descriptor=str(DESCRIPTORS),
        services=[name for names in SERVICES.values() for name in names],
        print_options=GrpcJsonTranscoderPrintOptions(
            always_print_primitive_fields=True,
            preserve_proto_field_names=True,
            stream_newline_delimited=True,
        ),
        convert_grpc_status=True,
        case_insensitive_enum_parsing=True,
        max_request_body_size=MAX_BODY_BYTES,
        max_response_body_size=2 * MAX_BODY_BYTES,
        request_validation_options=GrpcJsonTranscoderRequestValidationOptions(
            reject_unknown_query_parameters=True
        ),
    )


def _routes(settings: EnvoySettings) -> RouteConfiguration:
    routes = [
        Route(
            match=RouteMatch(prefix=f"/{service}/"),
            route=RouteAction(cluster=cluster, timeout=timedelta(), idle_timeout=timedelta()),
        )
        for cluster, services in SERVICES.items()
        for service in services
    ]
    routes += [
        Route(
            match=RouteMatch(prefix=prefix),
            route=RouteAction(cluster="session", timeout=timedelta(), idle_timeout=timedelta()),
        )
        for prefix in ("/grpc.health.v1.Health/", "/grpc.reflection.")
    ]
    routes += _pages()
    # Asked for as JSON, a method has no route of its own before the transcoder has named it; what it does not know
    # ends here. It must be a route all the same: without one, CORS would not answer for the path.
    routes.append(Route(match=RouteMatch(prefix="/"), direct_response=DirectResponseAction(status=404)))
    cors = CorsPolicy(
        allow_origin_string_match=[
            StringMatcher(safe_regex=RegexMatcher(regex=origin)) for origin in settings.origins
        ],
        allow_methods="GET, POST, PATCH, DELETE, OPTIONS",
        allow_headers="authorization, content-type, x-request-id, x-grpc-web, x-user-agent, grpc-timeout, "
        "connect-protocol-version, connect-timeout-ms",
        expose_headers="grpc-status, grpc-message, grpc-status-details-bin, x-request-id",
        max_age="86400",
    )
    return RouteConfiguration(
        name="public",
        virtual_hosts=[
            VirtualHost(
                name="public",
                domains=["*"],
                routes=routes,
                typed_per_filter_config={"envoy.filters.http.cors": _any(cors)},
            )
        ],
        request_headers_to_remove=["x-aiagent-local"],
        max_direct_response_body_size_bytes=8 * 1024 * 1024,
    )


def _page(path: str, file: Path) -> Route:
    headers = {
        "content-type": _CONTENT_TYPES[file.suffix],
        "cache-control": "no-cache" if file.suffix in (".html", ".json") else "max-age=86400",
        "x-content-type-options": "nosniff",
    }
    if file.suffix == ".html":
        headers["content-security-policy"] = (
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
            "script-src 'self'; worker-src blob: 'self'; frame-ancestors 'none'"
        )
    return Route(
        match=RouteMatch(path=path),
        direct_response=DirectResponseAction(status=200, body=DataSource(filename=str(file))),
        response_headers_to_add=[
            HeaderValueOption(header=HeaderValue(key=key, value=value)) for key, value in headers.items()
        ],
    )


def _pages() -> list[Route]:
    routes = [
        _page("/api/v1/openapi.json", OPENAPI),
        _page("/docs", STATIC / "docs.html"),
        _page("/redoc", STATIC / "redoc.html"),
        Route(match=RouteMatch(path="/"), redirect=RedirectAction(path_redirect="/docs")),
    ]
    routes += [
        _page(f"/static/{file.name}", file)
        for file in sorted(STATIC.iterdir())
        if file.suffix in _CONTENT_TYPES and file.suffix != ".html"
    ]
    return routes
