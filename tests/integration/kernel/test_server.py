"""The server's wrapper around real calls of every shape: identity, validation, request id, drain."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from aiagent.session.v1 import session_service_pb2 as pb
from aiagent.session.v1 import workspace_service_pb2 as workspace_pb
from aiagent.session.v1.session_service_pb2_grpc import SessionServiceStub
from aiagent.session.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from services.kernel.context import current_caller, current_request_id, current_service, remaining_seconds
from services.kernel.errors import ErrorKind
from services.kernel.grpc import KernelServer, accept_stream, build_server, error_from_rpc, open_channel
from services.kernel.identity import Caller
from services.kernel.telemetry import registry
from services.kernel.testing import AccessTokens, ServiceKeys, a_caller, running_server
from tests.integration.kernel.servicers import POLICIES, SESSION_ID, Sessions

pytestmark = pytest.mark.integration
GET = pb.GetSessionRequest(session_id=SESSION_ID)
# A header of JSON too deep to be read: "[[[[…".
NESTED = "Bearer " + base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.e30"
WATCH = pb.WatchSessionRequest(session_id=SESSION_ID)
SEND = pb.SendMessageRequest(session_id=SESSION_ID, message="hello")
INTERRUPT = pb.InterruptTurnRequest(session_id=SESSION_ID)


class Suite:
    """A server, who may call it, and stubs to it."""

    def __init__(self) -> None:
        self.tokens = AccessTokens()
        self.keys = ServiceKeys("executor", "scheduler", "stranger")
        self.sessions = Sessions()
        self.caller = a_caller()
        self.as_user = self.tokens.metadata(self.caller)
        self.server: KernelServer
        self.channel: grpc.aio.Channel
        self.stub: Any
        self.workspaces: Any

    def as_service(
        self, name: str, *, audience: str = "session", act_as: Caller | None = None
    ) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.keys.signer(name).sign(audience, act_as)}"),)


@pytest.fixture
async def suite() -> AsyncIterator[Suite]:
    made = Suite()
    async with running_server(
        register=[made.sessions.register],
        policies=POLICIES,
        users=made.tokens.verifier,
        services=made.keys.verifier("session"),
    ) as (made.server, made.channel):
        made.stub = SessionServiceStub(made.channel)
        made.workspaces = WorkspaceServiceStub(made.channel)
        yield made


async def refused(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = error_from_rpc(caught.value)
    return error.kind.value, error.reason


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


class TestIdentity:
    async def test_a_user_is_known_to_the_handler(self, suite: Suite) -> None:
        seen: list[Any] = []

        async def behave(_request: Any, _context: Any) -> None:
            seen.append((current_caller(), current_service()))

        suite.sessions.behave = behave
        await suite.stub.GetSession(GET, metadata=suite.as_user)
        assert seen == [(suite.caller, None)]

    async def test_no_token(self, suite: Suite) -> None:
        assert await refused(suite.stub.GetSession(GET)) == ("UNAUTHENTICATED", "TOKEN_MISSING")

    @pytest.mark.parametrize(
        "value",
        [
            "Bearer ",
            "Bearer x",
            "Basic abc",
            "Bearer a.b.c",
            "Bearer " + "a" * 4000,
            NESTED,
            f"Bearer e30.{NESTED[7:]}.e30",
        ],
    )
    async def test_no_real_token(self, suite: Suite, value: str) -> None:
        metadata = (("authorization", value),)
        assert await refused(suite.stub.GetSession(GET, metadata=metadata)) == (
            "UNAUTHENTICATED",
            "TOKEN_INVALID",
        )

    async def test_an_expired_token(self, suite: Suite) -> None:
        token = suite.tokens.token(suite.caller, lifetime=timedelta(seconds=-1))
        metadata = (("authorization", f"Bearer {token}"),)
        assert await refused(suite.stub.GetSession(GET, metadata=metadata)) == (
            "UNAUTHENTICATED",
            "TOKEN_EXPIRED",
        )

    async def test_a_public_method_needs_no_token(self, suite: Suite) -> None:
        seen: list[Any] = []

        async def behave(_request: Any, _context: Any) -> None:
            seen.append(current_caller)
            with pytest.raises(Exception, match="access token"):
                current_caller()

        suite.sessions.behave = behave
        await suite.stub.CreateSession(
            pb.CreateSessionRequest(name="n"), metadata=(("authorization", "rubbish"),)
        )
        assert seen

    async def test_a_method_without_policy_is_refused(self, suite: Suite) -> None:
        request = pb.DeleteSessionRequest(session_id=SESSION_ID)
        assert await refused(suite.stub.DeleteSession(request)) == ("UNAUTHENTICATED", "TOKEN_MISSING")
        assert await refused(suite.stub.DeleteSession(request, metadata=suite.as_user)) == (
            "PERMISSION_DENIED",
            "CALLER_NOT_ALLOWED",
        )

    async def test_services_call_only_what_is_theirs(self, suite: Suite) -> None:
        denied = ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")
        await suite.stub.InterruptTurn(INTERRUPT, metadata=suite.as_service("executor"))
        assert (
            await refused(suite.stub.InterruptTurn(INTERRUPT, metadata=suite.as_service("stranger")))
            == denied
        )
        assert await refused(suite.stub.InterruptTurn(INTERRUPT, metadata=suite.as_user)) == denied
        assert await refused(suite.stub.GetSession(GET, metadata=suite.as_service("executor"))) == denied
        assert await refused(
            suite.stub.InterruptTurn(INTERRUPT, metadata=suite.as_service("executor", audience="auth"))
        ) == ("UNAUTHENTICATED", "TOKEN_INVALID")

    async def test_a_service_acts_for_a_user(self, suite: Suite) -> None:
        seen: list[Any] = []

        async def behave(_request: Any, _context: Any) -> None:
            seen.append((current_caller().user_id, current_caller().service, current_service()))

        suite.sessions.behave = behave
        await suite.stub.SendMessage(SEND, metadata=suite.as_service("scheduler", act_as=suite.caller))
        assert seen == [(suite.caller.user_id, "scheduler", "scheduler")]
        assert await refused(suite.stub.SendMessage(SEND, metadata=suite.as_service("scheduler"))) == (
            "PERMISSION_DENIED",
            "CALLER_NOT_ALLOWED",
        )

    async def test_streams_are_guarded_as_unary_calls_are(self, suite: Suite) -> None:
        missing = ("UNAUTHENTICATED", "TOKEN_MISSING")
        assert await refused(collect(suite.stub.WatchSession(WATCH))) == missing
        download = workspace_pb.DownloadWorkspaceRequest(session_id=SESSION_ID)
        assert await refused(collect(suite.workspaces.DownloadWorkspace(download))) == missing
        assert await refused(suite.workspaces.UploadWorkspace(iter(()))) == missing


class TestRequests:
    async def test_streams_are_validated_message_by_message(self, suite: Suite) -> None:
        def requests(*ids: str) -> AsyncIterator[Any]:
            async def generate() -> AsyncIterator[Any]:
                for value in ids:
                    yield workspace_pb.UploadWorkspaceRequest(session_id=value)

            return generate()

        bad = pb.WatchSessionRequest(session_id="x")
        invalid = ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert await refused(collect(suite.stub.WatchSession(bad, metadata=suite.as_user))) == invalid
        broken = suite.workspaces.UploadWorkspace(requests(SESSION_ID, "x"), metadata=suite.as_user)
        assert await refused(broken) == invalid
        assert len(suite.sessions.received) <= 1

    async def test_a_stream_that_fails_midway_keeps_what_it_sent(self, suite: Suite) -> None:
        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            yield pb.WatchSessionResponse()
            raise RuntimeError("midway")

        suite.sessions.stream = stream
        call = suite.stub.WatchSession(WATCH, metadata=(*suite.as_user, ("x-request-id", "abc")))
        received = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in call:
                received.append(response)  # noqa: PERF401  # what came before the error counts
        assert len(received) == 1
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert dict(await call.initial_metadata())["x-request-id"] == "abc"

    async def test_an_accepted_stream_sends_its_headers_before_a_message(self, suite: Suite) -> None:
        done = asyncio.Event()

        async def stream(_request: Any, context: Any) -> AsyncIterator[Any]:
            await accept_stream(context)
            await done.wait()
            yield pb.WatchSessionResponse()

        suite.sessions.stream = stream
        call = suite.stub.WatchSession(WATCH, metadata=suite.as_user)
        async with asyncio.timeout(10):
            assert "x-request-id" in dict(await call.initial_metadata())
        done.set()
        assert len(await collect(call)) == 1

    @pytest.mark.parametrize("sent", ["abc-1._Z", "a" * 128])
    async def test_a_good_request_id_is_kept(self, suite: Suite, sent: str) -> None:
        assert await self.echoed(suite, sent) == (sent, sent)

    @pytest.mark.parametrize("sent", ["", "a b", "a" * 129, "a/b"])
    async def test_another_gets_a_new_one(self, suite: Suite, sent: str) -> None:
        inside, echoed = await self.echoed(suite, sent)
        assert inside == echoed
        assert echoed not in ("", sent)

    async def echoed(self, suite: Suite, sent: str) -> tuple[str, str]:
        seen: list[str] = []

        async def behave(_request: Any, _context: Any) -> None:
            seen.append(current_request_id())

        suite.sessions.behave = behave
        call = suite.stub.GetSession(GET, metadata=(*suite.as_user, ("x-request-id", sent)))
        await call
        return seen[0], dict(await call.initial_metadata())["x-request-id"]

    async def test_a_vanished_client_cancels_its_handler(self, suite: Suite) -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            try:
                yield pb.WatchSessionResponse()
                started.set()
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        suite.sessions.stream = stream
        call = suite.stub.WatchSession(WATCH, metadata=suite.as_user)
        await call.read()
        await started.wait()
        call.cancel()
        async with asyncio.timeout(10):
            await cancelled.wait()
            assert await suite.server.drain.wait_idle(10)

    async def test_a_handler_is_closed_before_its_call_is_over(self, suite: Suite) -> None:
        closed = False

        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            nonlocal closed
            try:
                while True:  # until flow control holds the write that the cancellation then hits
                    yield pb.WatchSessionResponse(items=[{"delta": {"text": "x" * 1_000_000}}])
            finally:
                await asyncio.sleep(0)
                closed = True

        suite.sessions.stream = stream
        call = suite.stub.WatchSession(WATCH, metadata=suite.as_user)
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            assert await suite.server.drain.wait_idle(10)
        assert closed

    async def test_calls_are_counted_and_logged_without_secrets(self, suite: Suite) -> None:
        labels = {"service": "aiagent.session.v1.SessionService", "method": "GetSession", "code": "OK"}
        before = registry.get_sample_value("aiagent_grpc_requests_total", labels) or 0
        with capture_logs() as logs:
            await suite.stub.GetSession(GET, metadata=suite.as_user)
            await suite.server.drain.wait_idle(5)
        assert registry.get_sample_value("aiagent_grpc_requests_total", labels) == before + 1
        entry = next(entry for entry in logs if entry["event"] == "call")
        assert (entry["code"], entry["user_id"]) == ("OK", str(suite.caller.user_id))
        assert entry["duration_ms"] > 0
        assert suite.as_user[0][1].removeprefix("Bearer ") not in str(logs)


class TestChannel:
    """What one service sends to another."""

    async def test_it_carries_identity_request_id_and_deadline(self, suite: Suite) -> None:
        seen: list[Any] = []
        channel = open_channel(
            f"127.0.0.1:{suite.server.port}",
            signer=suite.keys.signer("scheduler"),
            audience="session",
            forward_caller=True,
        )
        onward = SessionServiceStub(channel)

        async def behave(request: Any, _context: Any) -> None:
            seen.append((current_request_id(), current_caller().user_id, current_service()))
            left = remaining_seconds()
            assert left is not None
            assert 0 < left < 21  # rounded up on the wire
            if isinstance(request, pb.GetSessionRequest):
                await onward.SendMessage(SEND)

        suite.sessions.behave = behave
        async with channel:
            await suite.stub.GetSession(GET, metadata=(*suite.as_user, ("x-request-id", "r-1")), timeout=20)
        user = suite.caller.user_id
        assert seen == [("r-1", user, None), ("r-1", user, "scheduler")]

    async def test_streams_of_every_shape_pass(self, suite: Suite) -> None:
        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            for _ in range(3):
                yield pb.WatchSessionResponse()

        suite.sessions.stream = stream
        async with open_channel(
            f"127.0.0.1:{suite.server.port}", signer=suite.keys.signer("scheduler"), audience="session"
        ) as channel:
            call = SessionServiceStub(channel).WatchSession(WATCH)
            assert await refused(collect(call)) == ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")
            upload = WorkspaceServiceStub(channel).UploadWorkspace(iter(()))
            assert await refused(upload) == ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")


class TestHealth:
    async def test_health_is_public_and_follows_the_drain(self, suite: Suite) -> None:
        health = health_pb2_grpc.HealthStub(suite.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        states = health_pb2.HealthCheckResponse
        assert (await watch.read()).status == states.SERVING
        for name in ("", "aiagent.session.v1.SessionService"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == states.SERVING
        await suite.server.health.set_serving(False, "aiagent.session.v1.SessionService")
        one = health_pb2.HealthCheckRequest(service="aiagent.session.v1.SessionService")
        assert (await health.Check(one)).status == states.NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == states.SERVING
        await suite.server.drain_calls(1)
        assert (await watch.read()).status == states.NOT_SERVING
        await suite.server.health.set_serving(True)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == states.NOT_SERVING

    async def test_reflection_names_the_services(self, suite: Suite) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(suite.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert "aiagent.session.v1.SessionService" in names
        assert "grpc.health.v1.Health" in names
        call.cancel()


class TestDrain:
    async def test_running_calls_end_and_new_ones_are_refused(self, suite: Suite) -> None:
        entered, let_go = asyncio.Event(), asyncio.Event()

        async def behave(_request: Any, _context: Any) -> None:
            entered.set()
            await let_go.wait()

        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            yield pb.WatchSessionResponse()
            await suite.server.drain.wait()
            yield pb.WatchSessionResponse()

        suite.sessions.behave, suite.sessions.stream = behave, stream
        unary = asyncio.ensure_future(suite.stub.GetSession(GET, metadata=suite.as_user))
        watch = aiter(suite.stub.WatchSession(WATCH, metadata=suite.as_user))
        await anext(watch)
        await entered.wait()
        draining = asyncio.create_task(suite.server.drain_calls(30))
        assert len(await collect(watch)) == 1
        assert await refused(suite.stub.GetSession(GET, metadata=suite.as_user)) == (
            "UNAVAILABLE",
            "DRAINING",
        )
        assert not draining.done()
        let_go.set()
        assert (await unary).id == SESSION_ID
        assert await draining

    async def test_the_grace_is_bounded(self, suite: Suite) -> None:
        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            yield pb.WatchSessionResponse()
            await asyncio.Event().wait()

        suite.sessions.stream = stream
        watch = aiter(suite.stub.WatchSession(WATCH, metadata=suite.as_user))
        await anext(watch)
        assert not await suite.server.drain_calls(0.05)
        async with asyncio.timeout(10):
            await suite.server.stop()
            kind, _ = await refused(collect(watch))
        assert kind in (ErrorKind.UNAVAILABLE.value, ErrorKind.CANCELLED.value)


async def test_what_never_started_can_be_stopped() -> None:
    server = build_server(listen="127.0.0.1:0", domain="test.aiagent", register=[], policies={})
    await server.stop()
    await server.stop()


async def test_a_port_in_use_is_a_clear_error(suite: Suite) -> None:
    second = build_server(
        listen=f"127.0.0.1:{suite.server.port}", domain="test.aiagent", register=[], policies={}
    )
    with pytest.raises(OSError, match="is the port in use"):
        await second.start()


class TestUnreadableRequests:
    """What is no message of its type is refused like any other bad request, without the library's words."""

    @pytest.mark.parametrize("damaged", [b"\xff\xff\xff", b"\n\x05abc", b"\n\x02\xff\xfe"])
    async def test_are_invalid(self, suite: Suite, damaged: bytes) -> None:
        call = suite.channel.unary_unary("/aiagent.session.v1.SessionService/GetSession")
        assert await refused(call(damaged, metadata=suite.as_user)) == ("INVALID_ARGUMENT", "INVALID_REQUEST")

    async def test_are_not_looked_at_before_the_caller(self, suite: Suite) -> None:
        call = suite.channel.unary_unary("/aiagent.session.v1.SessionService/GetSession")
        assert (await refused(call(b"\xff")))[0] == "UNAUTHENTICATED"

    async def test_end_a_stream_of_requests(self, suite: Suite) -> None:
        call = suite.channel.stream_unary("/aiagent.session.v1.WorkspaceService/UploadWorkspace")
        sent = call(iter([b"\xff\xff"]), metadata=suite.as_user)
        assert await refused(sent) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
