"""Requests to receivers: those that take them, those that misbehave, and names that lead where nobody may go."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.scheduler.domain.receivers import AddressRules
from services.scheduler.gateways.webhooks import READ_BYTES, WebhookPost
from services.scheduler.usecases.webhooks.ports import Answer

from .receiver import Receiver, answer, hang, receiving

pytestmark = pytest.mark.integration
HEADERS = {"webhook-id": "msg_1"}
LOOPBACK = AddressRules([ip_network("127.0.0.1/32")])
BODY = b'{"type":"x"}'


class Names:
    """A name server: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def poster(names: Names | None = None, rules: AddressRules = LOOPBACK, **options: object) -> WebhookPost:
    return WebhookPost(rules, places=2, resolve=names, **options)  # type: ignore[arg-type]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as it:
        yield it


async def test_what_is_sent(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"])
    url = f"http://Receiver.Example:{receiver.port}/a/b?c=%20"
    found = await poster(names)(url, HEADERS, BODY)
    assert (found.status, found.error) == (204, "")
    assert found.duration > datetime.timedelta()
    (request,) = receiver.requests
    assert (request.line, request.body) == ("POST /a/b?c=%20 HTTP/1.1", BODY)
    assert request.headers == {
        "host": f"receiver.example:{receiver.port}",
        "user-agent": "aiagent-webhooks/1",
        "accept-encoding": "identity",
        "content-length": str(len(BODY)),
        "connection": "close",
        "webhook-id": "msg_1",
    }


async def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert (await poster()(receiver.url, {}, BODY)).status == 204


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.1"], ["169.254.169.254"], ["127.0.0.2"], ["::1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:10.0.0.1"],
     ["fe80::1%lo"]],
)  # fmt: skip
async def test_a_name_that_leads_within_is_not_connected_to(receiver: Receiver, addresses: list[str]) -> None:
    # The name's first address could be connected to: one that is not allowed refuses them all.
    found = await poster(Names(addresses))(f"http://evil.example:{receiver.port}/", {}, BODY)
    assert (found.status, found.error) == (0, "ADDRESS_NOT_ALLOWED")
    assert receiver.requests == []
    assert not any(address in found.error_message for address in addresses)


async def test_a_name_that_changes_its_mind_is_not_asked_twice(receiver: Receiver) -> None:
    # What was judged is connected to: the second answer would be another one's port on this machine.
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    found = await poster(names)(f"http://rebinding.example:{receiver.port}/", {}, BODY)
    assert (found.status, names.asked) == (204, 1)
    # And the other way round: what it says now is what counts, whatever it said before.
    found = await poster(names)(f"http://rebinding.example:{receiver.port}/", {}, BODY)
    assert (found.error, names.asked) == ("ADDRESS_NOT_ALLOWED", 2)
    assert len(receiver.requests) == 1


async def test_the_systems_own_resolver(receiver: Receiver) -> None:
    both = AddressRules([ip_network("127.0.0.0/8"), ip_network("::1/128")])
    found = await poster(rules=both)(f"http://localhost:{receiver.port}/", {}, BODY)
    assert found.status == 204
    found = await poster(rules=AddressRules())(f"http://localhost:{receiver.port}/", {}, BODY)
    assert found.error == "ADDRESS_NOT_ALLOWED"


async def test_the_next_address_where_one_does_not_listen(receiver: Receiver) -> None:
    both = AddressRules([ip_network("127.0.0.0/8")])
    names = Names(["127.0.0.9", "127.0.0.1"])
    found = await poster(names, both)(f"http://two.example:{receiver.port}/", {}, BODY)
    assert found.status == 204


async def test_names_without_addresses_and_ports_without_listeners() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    post = WebhookPost(LOOPBACK, places=1, resolve=unknown)
    assert (await post("http://nowhere.example/", {}, BODY)).error == "NAME_NOT_RESOLVED"
    assert (await poster(Names([]))("http://nowhere.example/", {}, BODY)).error == "NAME_NOT_RESOLVED"
    assert (await poster()("http://127.0.0.1:1/", {}, BODY)).error == "CONNECT_FAILED"
    assert (await poster()("http://127.1/", {}, BODY)).error == "URL_NOT_ALLOWED"


async def test_a_name_server_that_is_silent_is_not_waited_for() -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    post = WebhookPost(LOOPBACK, places=1, resolve=silent, connect_seconds=0.05)
    assert (await post("http://silent.example/", {}, BODY)).error == "TIMEOUT"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer(200, body=b"ok"), Answer(200, body="ok")),
        (answer(302, "location: http://127.0.0.2/"), Answer(302, "REDIRECTED", "redirects are not followed")),
        (answer(404), Answer(404, "REFUSED", "the receiver answered 404 Not Found")),
        (answer(599), Answer(599, "REFUSED", "the receiver answered 599")),
        (
            answer(503, "Retry-After: 120"),
            Answer(
                503,
                "REFUSED",
                "the receiver answered 503 Service Unavailable",
                retry_after=datetime.timedelta(seconds=120),
            ),
        ),
        *[
            (
                answer(429, f"Retry-After: {text}"),
                Answer(429, "REFUSED", "the receiver answered 429 Too Many Requests"),
            )
            for text in ("a while", "", "-5", "1e9", "9" * 5000, "Mon, 99 Foo 2026 00:00:00 GMT")
        ],
    ],
)
async def test_what_answers_mean(receiver: Receiver, reply: bytes, expected: Answer) -> None:
    receiver.reply = reply
    found = await poster()(receiver.url, {}, BODY)
    assert found.duration < datetime.timedelta(seconds=5)
    assert found == Answer(
        found.status, found.error, found.error_message, found.body, found.retry_after, found.duration
    )
    assert (found.status, found.error, found.error_message, found.body, found.retry_after) == (
        expected.status,
        expected.error,
        expected.error_message,
        expected.body,
        expected.retry_after,
    )
    assert len(receiver.requests) == 1


async def test_a_date_to_come_again_at(receiver: Receiver) -> None:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    receiver.reply = answer(503, moment.strftime("Retry-After: %a, %d %b %Y %H:%M:%S GMT"))
    found = await poster()(receiver.url, {}, BODY)
    assert found.retry_after is not None
    assert abs(found.retry_after - datetime.timedelta(hours=1)) < datetime.timedelta(seconds=10)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
        b"HTTP/1.1 two hundred\r\n\r\n",
    ],
)
async def test_what_is_no_answer(receiver: Receiver, reply: bytes) -> None:
    receiver.reply = reply
    assert (await poster()(receiver.url, {}, BODY)).error == "PROTOCOL_ERROR"


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte of the head now and then: each in time, and no end."""
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"y")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("reply", [hang, drip])
async def test_who_takes_too_long(receiver: Receiver, reply: object) -> None:
    receiver.reply = reply  # type: ignore[assignment]
    began = time.monotonic()
    assert (await poster(total_seconds=0.2)(receiver.url, {}, BODY)).error == "TIMEOUT"
    assert time.monotonic() - began < 2


async def test_a_body_without_end_is_not_waited_for(receiver: Receiver) -> None:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbeginning")
        await hang(writer)

    receiver.reply = reply
    found = await poster(body_seconds=0.1)(receiver.url, {}, BODY)
    assert (found.status, found.error, found.body) == (200, "", "beginning")


async def test_a_status_that_comes_late_counts_though_the_body_does_not_end(receiver: Receiver) -> None:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await hang(writer)

    receiver.reply = reply
    found = await poster(total_seconds=1.0, body_seconds=1.1)(receiver.url, {}, BODY)
    assert (found.status, found.error) == (200, "")


async def test_an_address_of_the_sixth_version() -> None:
    async with receiving(host="::1") as receiver:
        rules = AddressRules([ip_network("::1/128")])
        found = await poster(rules=rules)(f"http://[::1]:{receiver.port}/", {}, BODY)
        assert (found.status, found.error) == (204, "")
        assert receiver.requests[0].headers["host"] == f"[::1]:{receiver.port}"


async def test_little_is_read_of_much(receiver: Receiver) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * READ_BYTES)
            await writer.drain()
            sent += READ_BYTES

    receiver.reply = flood
    found = await poster()(receiver.url, {}, BODY)
    assert (found.status, found.body) == (200, "x" * 1024)
    # What fits into the buffers of the two ends, and no more.
    assert sent < 16 * 1024 * 1024


async def test_nothing_is_decompressed(receiver: Receiver) -> None:
    packed = gzip.compress(b"0" * 50_000_000)
    receiver.reply = answer(200, "content-encoding: gzip", body=packed)
    found = await poster()(receiver.url, {}, BODY)
    assert found.status == 200
    assert "000" not in found.body
    assert len(found.body) <= 1024


def certificate(directory: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with that name, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=str(path))


async def test_tls_keeps_the_name_though_the_address_is_connected_to(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "hooks.example")
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with receiving(tls=server) as receiver:
        names = Names(["127.0.0.1"])
        url = f"https://hooks.example:{receiver.port}/"
        assert (await poster(names, context=client)(url, {}, BODY)).status == 204
        assert asked == ["hooks.example"]
        assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.port}"
        other = f"https://other.example:{receiver.port}/"
        for post, target in ((poster(names, context=client), other), (poster(names), url)):
            found = await post(target, {}, BODY)
            assert (found.status, found.error) == (0, "TLS_FAILED")
        assert len(receiver.requests) == 1
