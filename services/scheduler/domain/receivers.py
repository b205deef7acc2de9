"""Which addresses a webhook may send to: the URL is read by one grammar of our own, and every IP address is judged.

A webhook makes the service connect to where a user points it, from within the operator's network (server-side request
forgery). So nothing is reached but what the public internet knows, unless the operator allows a network. The same
parser reads the URL when it is set and when it is used: two that disagree are how such rules are got around.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[/?][^#]*)?(?P<fragment>#.*)?"
)
_AUTHORITY: Final = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What the resolver takes for a number, in whatever base: as the last label it makes the whole an IPv4 address (WHATWG
# URL, "ends in a number").
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNWISE: Final = re.compile(r"[\\^`\"<>{}|]")
_MAX_NAME: Final = 253

# What `is_global` lets through, and yet is not for us: multicast, the deprecated forms of IPv6 that carry an IPv4
# address, Teredo, the local NAT64 prefix, and the one metadata service that has a public address (Azure's).
_REFUSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24",
        "::/96", "100::/64", "64:ff9b:1::/48", "2001::/23", "2001:db8::/32", "3fff::/20", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")


class ReceiverFault(ValueError):
    """A URL breaks a rule; `rule` is its stable name."""

    def __init__(self, rule: str, description: str) -> None:
        super().__init__(description)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Receiver:
    """A URL, taken apart.

    Attributes:
        scheme: `http` or `https`.
        host: A name or an address in lower case, without brackets.
        port: The one given, or the scheme's own.
        target: Path and query.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def name(self) -> str:
        """Host and port, by which those of one receiver are counted together."""
        return f"{self._bracketed}:{self.port}"

    @property
    def host_header(self) -> str:
        """The value of the header `host`."""
        return self._bracketed if self.port == _PORTS[self.scheme] else self.name

    @property
    def literal(self) -> IpAddress | None:
        """The address that the host is; None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse(url: str) -> Receiver:
    """Takes a URL apart.

    Raises:
        ReceiverFault: SYNTAX, SCHEME, USER_INFO, FRAGMENT, HOST or PORT.
    """
    if not url.isascii() or not url.isprintable() or " " in url or _UNWISE.search(url):
        raise ReceiverFault("SYNTAX", "has characters that a URL does not have; names are given as xn--…")
    found = _URL.fullmatch(url)
    if found is None:
        raise ReceiverFault("SYNTAX", "is no absolute URL")
    scheme = found["scheme"].lower()
    if scheme not in _PORTS:
        raise ReceiverFault("SCHEME", "must be https or http")
    if "@" in found["authority"]:
        raise ReceiverFault("USER_INFO", "must not name a user")
    if found["fragment"] is not None:
        raise ReceiverFault("FRAGMENT", "must not have a fragment")
    place = _AUTHORITY.fullmatch(found["authority"])
    if place is None:
        raise ReceiverFault("HOST", "has no host that can be read")
    port = int(place["port"]) if place["port"] else _PORTS[scheme]
    if not 1 <= port <= 65535:
        raise ReceiverFault("PORT", "must have a port from 1 to 65535")
    host = _six(place["six"]) if place["six"] is not None else _name(place["name"].lower())
    target = found["target"] or "/"
    return Receiver(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _six(text: str) -> str:
    # A zone names an interface of this machine.
    if "%" in text:
        raise ReceiverFault("HOST", "must not have a zone")
    try:
        return ipaddress.IPv6Address(text).compressed
    except ValueError:
        raise ReceiverFault("HOST", "has no IPv6 address in its brackets") from None


def _name(text: str) -> str:
    labels = text.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ReceiverFault("HOST", "must have an IPv4 address as four decimal numbers") from None
    if len(text) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ReceiverFault("HOST", "has no host name that can be read")
    return text


class AddressRules:
    """Which IP addresses may be connected to."""

    def __init__(self, allowed: Sequence[IpNetwork] = ()) -> None:
        """Args: allowed: networks that are let through whatever else is said of them."""
        self._allowed = tuple(allowed)

    def allows(self, address: IpAddress) -> bool:
        """Tells whether an address may be connected to; what it carries is judged where it carries another one."""
        forms = _forms(address)
        if any(form in network for form in forms for network in self._allowed):
            return True
        return all(_is_public(form) for form in forms)

    def check(self, url: str) -> Receiver:
        """Judges a URL as far as it can be judged without asking a name server.

        Raises:
            ReceiverFault: as `parse`, or ADDRESS.
        """
        receiver = parse(url)
        address = receiver.literal
        if receiver.host == "localhost" or receiver.host.endswith(".localhost"):
            address = ipaddress.IPv4Address("127.0.0.1")
        if address is not None and not self.allows(address):
            raise ReceiverFault(
                "ADDRESS", "must not lead to an address that the public internet does not know"
            )
        return receiver


def _forms(address: IpAddress) -> tuple[IpAddress, ...]:
    """An address, or the IPv4 address that it stands for; both for one that is reached through a relay."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.sixtofour is not None:
        return (address, address.sixtofour)
    return (address,)


def _is_public(address: IpAddress) -> bool:
    if any(address in network for network in _REFUSED):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # Python counts 6to4 as not global; the address within is judged by itself.
        if address.scope_id is not None or address not in _UNICAST:
            return False
        if address.sixtofour is not None:
            return True
    return address.is_global
