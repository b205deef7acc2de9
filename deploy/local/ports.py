"""Ports of this machine."""

from __future__ import annotations

import secrets
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_LOWEST: Final = 15_000
_HIGHEST: Final = 32_000


def free_port() -> int:
    """A port of loopback that nobody listens on.

    Below those that systems hand out to outgoing connections, so that a server that is started again finds its own
    still free.
    """
    while True:
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if port_is_free(LOOPBACK, port):
            return port


def port_is_free(host: str, port: int) -> bool:
    """Whether nobody listens there."""
    return why_not_bind(host, port) is None


def why_not_bind(host: str, port: int) -> OSError | None:
    """Why one cannot listen there; None when one can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
