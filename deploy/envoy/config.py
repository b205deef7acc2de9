"""Builds Envoy's configuration: one public listener for gRPC, gRPC-Web and JSON, and the static pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter, ComparisonFilter, StatusCodeFilter
from envoy_data_plane.envoy.config.accesslog.v3 import ComparisonFilterOp as Op
from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation, HeaderMutationRemoveOnMatch
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HttpUri,
    Pipe,
    RuntimeUInt32,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher, RouteMatch
from envoy_data_plane.envoy.extensions.compression.gzip.compressor.v3 import Gzip
from envoy_data_plane.envoy.extensions.filters.http.compressor.v3 import (
    Compressor,
    CompressorCommonDirectionConfig,
    CompressorResponseDirectionConfig,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors
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
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpFilter,
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent

from deploy.envoy.clusters import address, any_of, from_clients, listener_itself, service
from deploy.envoy.paths import path_names
from deploy.envoy.routes import PUBLIC, PUBLIC_PREFIXES, SERVICES, routes

__all__ = ["LOCAL_ORIGINS", "MAX_BODY_BYTES", "PUBLIC", "SERVICES", "EnvoySettings", "build", "render"]

DESCRIPTORS = Path(__file__).parents[2] / "protos" / "gen" / "descriptors.binpb"
MAX_BODY_BYTES = 16 * 1024 * 1024
BUFFER_BYTES = 256 * 1024
LOCAL_ORIGINS = (r"https?://localhost(:\d+)?", r"https?://127\.0\.0\.1(:\d+)?")
_MARK = "x-aiagent-local"
_OURS = ("x-envoy-", "x-aiagent-")
"""Prefixes of headers that mean something within; from outside they are taken off."""


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
    origins: Sequence[str] = LOCAL_ORIGINS


def render(settings: EnvoySettings) -> str:
    """The configuration as JSON, which Envoy reads from a file."""
    return json.dumps(build(settings).to_dict(), indent=1)


def build(settings: EnvoySettings) -> Bootstrap:
    """The configuration as Envoy's own messages."""
    inside = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    clusters = [service(name, settings.endpoints[name]) for name in SERVICES]
    clusters.append(listener_itself(f"{inside}:{settings.port}"))
    return Bootstrap(
        admin=Admin(address=Address(pipe=Pipe(path=str(settings.admin_socket), mode=0o600))),
        static_resources=BootstrapStaticResources(listeners=[_listener(settings)], clusters=clusters),
    )


def _filter(name: str, message: object) -> HttpFilter:
    return HttpFilter(name=f"envoy.filters.http.{name}", typed_config=any_of(message))


def _listener(settings: EnvoySettings) -> Listener:
    lua = (Path(__file__).parent / "errors.lua").read_text(encoding="utf-8")
    manager = HttpConnectionManager(
        stat_prefix="public",
        route_config=routes(settings.origins),
        http_filters=[
            _filter("lua", Lua(default_source_code=DataSource(inline_string=lua))),
            _filter("cors", Cors()),
            _filter("health_check", _health()),
            _filter("compressor", _compressor()),
            _filter("grpc_web", GrpcWeb()),
            _filter("jwt_authn", _tokens()),
            _filter("path_names", Lua(default_source_code=DataSource(inline_string=path_names(DESCRIPTORS)))),
            _filter("grpc_json_transcoder", _transcoder()),
            _filter("router", Router(suppress_envoy_headers=True)),
        ],
        http2_protocol_options=from_clients(),
        early_header_mutation_extensions=[
            TypedExtensionConfig(
                name="envoy.http.early_header_mutation.header_mutation",
                typed_config=any_of(
                    EarlyHeaderMutation(
                        mutations=[
                            HeaderMutation(
                                remove_on_match=HeaderMutationRemoveOnMatch(
                                    key_matcher=StringMatcher(prefix=prefix)
                                )
                            )
                            for prefix in _OURS
                        ]
                    )
                ),
            )
        ],
        use_remote_address=True,
        # A client that sends slowly holds a connection, never for long: headers, and the whole of a request.
        request_headers_timeout=timedelta(seconds=15),
        request_timeout=timedelta(hours=1),
        stream_idle_timeout=timedelta(minutes=5),
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        local_reply_config=_marked(),
        server_name="aiagent",
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST,
    )
    return Listener(
        name="public",
        address=address(f"{settings.host}:{settings.port}"),
        # What a client of HTTP/1.1 does not read stays here (of HTTP/2, once for each stream: its window); the
        # transcoder, which needs whole bodies, has a limit of its own.
        per_connection_buffer_limit_bytes=BUFFER_BYTES,
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(name="envoy.filters.network.http_connection_manager", typed_config=any_of(manager))
                ]
            )
        ],
    )


def _marked() -> LocalReplyConfig:
    """Marks Envoy's own answers, with status and cause, for errors.lua to give them their form."""
    mark = HeaderValueOption(header=HeaderValue(key=_MARK, value="%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%"))
    every = AccessLogFilter(
        status_code_filter=StatusCodeFilter(
            comparison=ComparisonFilter(
                op=Op.GE, value=RuntimeUInt32(default_value=200, runtime_key="aiagent.local_reply")
            )
        )
    )
    return LocalReplyConfig(mappers=[ResponseMapper(filter=every, headers_to_add=[mark])])


def _health() -> HealthCheckFilter:
    return HealthCheckFilter(
        pass_through_mode=False,
        headers=[HeaderMatcher(name=":path", string_match=StringMatcher(exact="/health"))],
        cluster_min_healthy_percentages={name: Percent(value=1.0) for name in SERVICES},
    )


def _compressor() -> Compressor:
    # Each piece is flushed as it comes, so that JSON streams stay live; gRPC has its own compression.
    return Compressor(
        response_direction_config=CompressorResponseDirectionConfig(
            common_config=CompressorCommonDirectionConfig(
                min_content_length=1024,
                content_type=["application/json", "text/html", "text/css", "text/javascript"],
            ),
        ),
        compressor_library=TypedExtensionConfig(
            name="envoy.compression.gzip.compressor", typed_config=any_of(Gzip())
        ),
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
            async_fetch=JwksAsyncFetch(
                fast_listener=True, failed_refetch_duration=timedelta(milliseconds=200)
            ),
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
        # As forms write a blank: a cron expression is full of them.
        query_param_unescape_plus=True,
        max_request_body_size=MAX_BODY_BYTES,
        max_response_body_size=2 * MAX_BODY_BYTES,
        request_validation_options=GrpcJsonTranscoderRequestValidationOptions(
            reject_unknown_query_parameters=True, reject_binding_body_field_collisions=True
        ),
    )
