"""What can be reached from outside, and nothing else: the executor and every internal RPC have no route."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteActionClusterNotFoundResponseCode,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import CorsPolicy
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher

from deploy.envoy.clusters import any_of

OPENAPI = Path(__file__).parents[2] / "protos" / "gen" / "openapi.json"
STATIC = Path(__file__).parent / "static"

SERVICES = {
    "auth": ("aiagent.auth.v1.AuthService",),
    "session": (
        "aiagent.session.v1.SessionService",
        "aiagent.session.v1.PermissionService",
        "aiagent.session.v1.WorkspaceService",
    ),
    "scheduler": ("aiagent.scheduler.v1.SchedulerService", "aiagent.scheduler.v1.WebhookService"),
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
GENERIC = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Prefixes of the services that every gRPC server has."""
PUBLIC_PREFIXES = ("/docs", "/redoc", "/static/", *GENERIC)
WATCHES = {
    "session": "/aiagent.session.v1.SessionService/WatchSession",
    "scheduler": "/aiagent.scheduler.v1.SchedulerService/WatchTaskRun",
}
"""The streams that are never silent: a checkpoint comes every 15 s."""
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_LARGEST_PAGE_BYTES = 8 * 1024 * 1024


def routes(origins: Sequence[str]) -> RouteConfiguration:
    """All routes.

    Args:
        origins: that browsers may call from, as regular expressions.
    """
    # Checkpoints keep a stream that is read busy; one that has carried nothing for the listener's five minutes is not
    # read, and its service cannot take it back alone.
    known = [_call(method, cluster, busy=True) for cluster, method in WATCHES.items()]
    known += [
        _call(f"/{service}/", cluster) for cluster, services in SERVICES.items() for service in services
    ]
    known += [_call(prefix, "session") for prefix in GENERIC]
    # Asked for as JSON, a method has no route of its own before the transcoder has named it; what it does not know
    # ends here, with 404, because nobody can send the header. It must be a route to a cluster all the same: CORS
    # answers for no other.
    unknown = Route(
        match=RouteMatch(prefix="/"),
        route=RouteAction(
            cluster_header="x-aiagent-cluster",
            cluster_not_found_response_code=RouteActionClusterNotFoundResponseCode.NOT_FOUND,
        ),
    )
    cors = CorsPolicy(
        allow_origin_string_match=[
            StringMatcher(safe_regex=RegexMatcher(regex=origin)) for origin in origins
        ],
        allow_methods="GET, POST, PUT, PATCH, DELETE, OPTIONS",
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
                routes=[*known, *_pages(), unknown],
                typed_per_filter_config={"envoy.filters.http.cors": any_of(cors)},
            )
        ],
        max_direct_response_body_size_bytes=_LARGEST_PAGE_BYTES,
    )


def _call(prefix: str, cluster: str, *, busy: bool = False) -> Route:
    # Only what has surely not reached a service is tried again, with another replica.
    again = RetryPolicy(
        retry_on="connect-failure,refused-stream",
        num_retries=2,
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=any_of(PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=3,
    )
    # Streams live as long as their sessions: no time is set here, calls carry their own deadlines. Many have nothing to
    # say for long; those that never do (`busy`) have the listener's limit.
    idle = None if busy else timedelta()
    return Route(
        match=RouteMatch(prefix=prefix),
        route=RouteAction(cluster=cluster, timeout=timedelta(), idle_timeout=idle, retry_policy=again),
    )


def _page(path: str, file: Path) -> Route:
    headers = {
        "content-type": _CONTENT_TYPES[file.suffix],
        "cache-control": "no-cache" if file.suffix in (".html", ".json") else "max-age=86400",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    if file.suffix == ".html":
        headers["x-frame-options"] = "DENY"
        headers["content-security-policy"] = (
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
            "script-src 'self'; worker-src blob: 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
    return Route(
        match=RouteMatch(path=path),
        direct_response=DirectResponseAction(status=200, body=DataSource(filename=str(file))),
        response_headers_to_add=[
            HeaderValueOption(header=HeaderValue(key=key, value=value)) for key, value in headers.items()
        ],
    )


def _redirect(path: str, target: str) -> Route:
    # By a path alone: Envoy's own redirect repeats the host that the client named, whoever told it that name.
    return Route(
        match=RouteMatch(path=path),
        direct_response=DirectResponseAction(status=302),
        response_headers_to_add=[
            HeaderValueOption(
                header=HeaderValue(key="location", value=target),
                append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        ],
    )


def _pages() -> list[Route]:
    pages = [
        _page("/api/v1/openapi.json", OPENAPI),
        _page("/docs", STATIC / "docs.html"),
        _page("/redoc", STATIC / "redoc.html"),
    ]
    pages += [_redirect(path, path.rstrip("/") or "/docs") for path in ("/", "/docs/", "/redoc/")]
    pages += [
        _page(f"/static/{file.name}", file)
        for file in sorted(STATIC.iterdir())
        if file.suffix in _CONTENT_TYPES and file.suffix != ".html"
    ]
    return pages
