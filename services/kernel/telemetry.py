"""Logs and metrics: structlog as JSON lines, Prometheus counters in one registry."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from services.kernel.context import current_request_id

REGISTRY = CollectorRegistry()
GRPC_REQUESTS = Counter(
    "aiagent_grpc_requests", "Calls served, by their outcome.", ("service", "method", "code"), registry=REGISTRY
)
GRPC_SECONDS = Histogram(
    "aiagent_grpc_request_seconds",
    "Duration of calls; of a stream, of the whole of it.",
    ("service", "method"),
    registry=REGISTRY,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
FAILURES = Counter(
    "aiagent_failures", "Unexpected errors that were caught and logged.", ("where",), registry=REGISTRY
)


def _add_request_id(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    request_id = current_request_id()
    if request_id:
        event.setdefault("request_id", request_id)
    return event


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends structlog's and the standard library's logs to one stream, one JSON object a line.

    Args:
        level: The lowest level to write, by name.
        stream: Where to; standard error if left out.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)
