"""Which client calls: its address and what it calls itself."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import unquote

import grpc

from services.auth.domain.refresh import Client

_MAX_USER_AGENT = 512


def client_of(context: grpc.aio.ServicerContext[Any, Any], trusted_hops: int) -> Client:
    """Reads the client of a call.

    Args:
        trusted_hops: how many proxies in front append to `x-forwarded-for`; 0 believes only the connection. Entries
            further left than theirs were written by the client itself.
    """
    forwarded: list[str] = []
    user_agent = ""
    for key, value in context.invocation_metadata() or ():
        if not isinstance(value, str):
            continue
        if key == "x-forwarded-for":
            forwarded.extend(part.strip() for part in value.split(","))
        elif key == "user-agent":
            user_agent = value[:_MAX_USER_AGENT]
    address = ""
    if 0 < trusted_hops <= len(forwarded):
        address = _address(forwarded[-trusted_hops])
    return Client(address or _peer(context.peer()), user_agent)


def _peer(peer: str) -> str:
    """The address in gRPC's `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`; empty for a Unix socket."""
    family, _, rest = unquote(peer).partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return _address(rest.rpartition(":")[0].strip("[]"))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
