"""Where webhooks may point: URLs in every odd form, and every kind of address."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from services.scheduler.domain.receivers import AddressRules, Receiver, ReceiverFault, parse

pytestmark = pytest.mark.unit
PUBLIC = AddressRules()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com", Receiver("https", "example.com", 443, "/")),
        ("HTTP://Example.COM:8080/A?b=C&d", Receiver("http", "example.com", 8080, "/A?b=C&d")),
        ("https://example.com?x=//y@z", Receiver("https", "example.com", 443, "/?x=//y@z")),
        ("http://8.8.8.8:80/", Receiver("http", "8.8.8.8", 80, "/")),
        ("https://[2606:4700:0:0::1111]/", Receiver("https", "2606:4700::1111", 443, "/")),
        ("https://xn--bcher-kva.example/", Receiver("https", "xn--bcher-kva.example", 443, "/")),
        ("http://intranet/", Receiver("http", "intranet", 80, "/")),
        ("http://my_service.internal/", Receiver("http", "my_service.internal", 80, "/")),
    ],
)
def test_what_is_read(url: str, expected: Receiver) -> None:
    assert parse(url) == expected


def test_how_a_receiver_is_named() -> None:
    six = parse("http://[2606:4700::1111]:8080/")
    assert (six.name, six.host_header) == ("[2606:4700::1111]:8080", "[2606:4700::1111]:8080")
    plain = parse("https://example.com/")
    assert (plain.name, plain.host_header) == ("example.com:443", "example.com")


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("", "SYNTAX"),
        ("example.com/hook", "SYNTAX"),
        ("//example.com/", "SYNTAX"),
        ("https:/example.com/", "SYNTAX"),
        ("https://example.com/a b", "SYNTAX"),
        ("https://example.com/\r\nhost: x", "SYNTAX"),
        ("https://example.com\\@127.0.0.1/", "SYNTAX"),
        ("https://b\u00fccher.example/", "SYNTAX"),
        # Full-width digits and an ideographic full stop are an address to those who normalize them.
        ("http://\uff11\uff12\uff17.0.0.1/", "SYNTAX"),
        ("http://127\u30020\u30020\u30021/", "SYNTAX"),
        ("ftp://example.com/", "SCHEME"),
        ("file:///etc/passwd", "SCHEME"),
        ("gopher://example.com/", "SCHEME"),
        ("https://user@example.com/", "USER_INFO"),
        ("https://user:password@example.com/", "USER_INFO"),
        ("https://example.com:80@127.0.0.1/", "USER_INFO"),
        ("https://example.com/#part", "FRAGMENT"),
        ("https://", "HOST"),
        ("https://:443/", "HOST"),
        ("https://.example.com/", "HOST"),
        ("https://example..com/", "HOST"),
        ("https://example.com./", "HOST"),
        ("http://127.0.0.1./", "HOST"),
        ("https://-example.com/", "HOST"),
        ("https://exa%6dple.com/", "HOST"),
        ("https://example.com:/", "HOST"),
        ("https://example.com:4x/", "HOST"),
        ("https://" + "a" * 64 + ".com/", "HOST"),
        ("https://" + "a." * 127 + "com/", "HOST"),
        # Numbers in other forms, which resolvers read as 127.0.0.1.
        ("http://2130706433/", "HOST"),
        ("http://0x7f000001/", "HOST"),
        ("http://0x7f.0.0.0x1/", "HOST"),
        ("http://0177.0.0.01/", "HOST"),
        ("http://127.1/", "HOST"),
        ("http://127.0.0.1.5/", "HOST"),
        ("http://1.2.3.256/", "HOST"),
        ("http://example.0x1/", "HOST"),
        ("http://[::1/", "HOST"),
        ("http://::1/", "HOST"),
        ("http://[example.com]/", "HOST"),
        ("http://[fe80::1%25eth0]/", "HOST"),
        ("http://[fe80::1%eth0]/", "HOST"),
        ("https://example.com:0/", "PORT"),
        ("https://example.com:65536/", "PORT"),
    ],
)
def test_what_is_refused(url: str, rule: str) -> None:
    with pytest.raises(ReceiverFault) as refused:
        PUBLIC.check(url)
    assert refused.value.rule == rule


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "LocalHost", "a.localhost"],
)  # fmt: skip
def test_an_address_that_is_plain_to_see_is_judged_when_it_is_set(host: str) -> None:
    with pytest.raises(ReceiverFault) as refused:
        PUBLIC.check(f"http://{host}/")
    assert refused.value.rule == "ADDRESS"


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.255.255.255",
        "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.170", "192.0.0.192",
        "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16", "100.100.100.200",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "fe80::1", "fe80::1%eth0", "2606:4700::1111%eth0", "fec0::1",
        "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2001::1", "2001:0:7f00:1::", "100::1", "3fff::1",
        "4000::1", "64:ff9b:1::808:808",
        # Those that stand for an IPv4 address of these.
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::",
    ],
)  # fmt: skip
def test_addresses_that_the_internet_does_not_know(address: str) -> None:
    assert not PUBLIC.allows(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8",
     "64:ff9b::808:808", "2002:808:808::1"],
)  # fmt: skip
def test_addresses_that_the_internet_knows(address: str) -> None:
    assert PUBLIC.allows(ip_address(address))


def test_what_an_operator_allows() -> None:
    rules = AddressRules([ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")])
    allowed = ["10.1.2.3", "fd00:1::5", "::ffff:10.1.2.3", "64:ff9b::a01:203", "8.8.8.8"]
    assert [address for address in allowed if not rules.allows(ip_address(address))] == []
    refused = ["10.2.0.1", "fd00:2::5", "127.0.0.1", "::ffff:10.2.0.1", "169.254.169.254"]
    assert [address for address in refused if rules.allows(ip_address(address))] == []
    assert rules.check("http://10.1.2.3:8080/").port == 8080
