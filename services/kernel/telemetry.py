"""Logs as JSON lines and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    make_wsgi_app,
)

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

registry: Final = CollectorRegistry(auto_describe=True)
GRPC_REQUESTS: Final = Counter(
    "aiagent_grpc_requests_total",
    "Calls that have ended.",
    ("service", "method", "code"),
    registry=registry,
)
GRPC_REQUEST_SECONDS: Final = Histogram(
    "aiagent_grpc_request_seconds",
    "How long calls took, streams included.",
    ("service", "method"),
    registry=registry,
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
ASYNCIO_TASKS: Final = Gauge(
    "aiagent_asyncio_tasks",
    "Tasks of the event loop that have not ended.",
    registry=registry,
)
ProcessCollector(registry=registry)
_SECRET_WORDS: Final = ("password", "token", "secret", "authorization", "api_key", "private_key", "cookie")
# Counts of tokens are no secrets.
_HARMLESS: Final = ("input_tokens", "output_tokens", "read_tokens", "write_tokens", "max_tokens")


def configure_logging(level: str = "INFO", *, stream: TextIO | None = None, file: Path | None = None) -> None:
    """Sends structlog and the standard library's logging to one place as JSON lines.

    Args:
        level: name of the lowest level shown.
        stream: where to write; standard error by default.
        file: append here instead; created readable by its owner only.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"no log level is called {level}")
    if file is not None:
        file.touch(mode=0o600, exist_ok=True)
        handler: logging.Handler = logging.FileHandler(file, encoding="utf-8")
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        hide_secrets,
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Without the locals of the frames: tokens and a person's text are among them.
                structlog.processors.ExceptionRenderer(
                    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
                ),
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    # Every statement, and every request of a client, is too much at these levels.
    for noisy in ("sqlalchemy.engine", "httpx", "httpcore", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
    # Ten times a second, for as long as a broker is away; whoever needs it says so once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def hide_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces the values of keys that sound like secrets; values without such a key are the author's duty."""
    for key in event:
        lowered = key.lower()
        if any(word in lowered for word in _SECRET_WORDS) and not lowered.endswith(_HARMLESS):
            event[key] = "[hidden]"
    return event


class MetricsServer:
    """Answers `GET /metrics` with the registry, from a thread of its own: a loop that is stuck can be looked at."""

    def __init__(self, host: str, port: int, ready: Callable[[], bool] | None = None) -> None:
        """Args:
        port: 0 takes a free one.
        ready: asked, in that thread, for `GET /ready`: 200 or 503; for processes without a health service.
        """
        self._host = host
        self.port = port
        self._ready = ready
        self._stop: Callable[[], None] | None = None

    @classmethod
    def at(cls, listen: str, ready: Callable[[], bool] | None = None) -> MetricsServer:
        """Args: listen: `host:port`; an IPv6 address in brackets. ready: as above."""
        host, _, port = listen.rpartition(":")
        return cls(host.strip("[]"), int(port), ready)

    async def start(self) -> int:
        """Listens; returns the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        ASYNCIO_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        # Not the library's own server: it answers every path, `/ready` too, before another application can be set.
        address = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM)[0]
        kind = _Server6 if address[0] == socket.AF_INET6 else _Server
        server = make_server(
            str(address[4][0]), self.port, _application(self._ready), kind, handler_class=_Quiet
        )
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return self.port

    async def stop(self) -> None:
        """Closes the port."""
        if self._stop is not None:
            await asyncio.to_thread(self._stop)
            self._stop = None


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests of a scraper are nothing to log."""


def _application(ready: Callable[[], bool] | None) -> WSGIApplication:
    """The application of WSGI (PEP 3333) that tells the metrics, and at `/ready` whether the process is ready."""
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if ready is None or environment.get("PATH_INFO") != "/ready":
            return metrics(environment, start_response)
        is_ready = ready()
        start_response(
            "200 OK" if is_ready else "503 Service Unavailable",
            [("Content-Type", "text/plain; charset=utf-8")],
        )
        return [b"ready\n" if is_ready else b"not ready\n"]

    return answer
