"""What clients meet at the public port, whatever is behind it."""

from __future__ import annotations

import asyncio
import struct
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2

from aiagent.executor.v1 import executor_service_pb2, executor_service_pb2_grpc
from aiagent.session.v1 import session_service_pb2, session_service_pb2_grpc
from deploy.envoy.clusters import to_services
from deploy.envoy.routes import routes
from services.kernel.testing import a_caller

from .conftest import answered
from .edge import Edge

pytestmark = pytest.mark.integration

UUID = "0190d9a4-7b1c-7f00-8000-000000000001"
OTHER = "0190d9a4-7b1c-7f00-8000-000000000002"
SESSION = f"/api/v1/sessions/{UUID}"


def bearer(edge: Edge, **options: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {edge.tokens.token(a_caller(), **options)}"}


def status_of(error: grpc.aio.AioRpcError) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo]:
    """The rich status of a failed call, and its first detail."""
    metadata = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return status, info


async def test_envoy_accepts_the_whole_configuration(edge: Edge) -> None:
    edge.envoy.validate()


def test_silence_is_limited_where_it_cannot_be_meant() -> None:
    found = {
        route.match.prefix: route.route.idle_timeout
        for route in routes(()).virtual_hosts[0].routes
        if route.route and route.match.prefix.startswith("/aiagent")
    }
    limited = {prefix for prefix, idle in found.items() if idle is None}
    assert limited == {
        "/aiagent.session.v1.SessionService/WatchSession",
        "/aiagent.scheduler.v1.SchedulerService/WatchTaskRun",
    }
    assert len(found) > len(limited)
    assert all(idle == timedelta() for prefix, idle in found.items() if prefix not in limited)


def test_streams_that_nobody_reads_cannot_fill_the_connection_that_all_share() -> None:
    shared = to_services()
    assert shared.initial_connection_window_size is not None
    assert shared.initial_stream_window_size is not None
    assert shared.max_concurrent_streams is not None
    unread = shared.max_concurrent_streams * shared.initial_stream_window_size
    assert shared.initial_connection_window_size >= unread


class TestTokens:
    @pytest.mark.parametrize(
        ("token", "reason"),
        [("none", "TOKEN_MISSING"), ("nonsense", "TOKEN_INVALID"), ("old", "TOKEN_EXPIRED")],
    )
    async def test_refused_with_a_reason(
        self, token: str, reason: str, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        expired = bearer(edge, lifetime=timedelta(minutes=-5))
        headers = {"none": {}, "nonsense": {"authorization": "Bearer abc"}, "old": expired}[token]
        answer = await client.get(SESSION, headers={**headers, "x-request-id": "mine-1"})
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body["code"] == 16
        assert body["details"][0]["reason"] == reason
        assert body["details"][0]["metadata"] == {"request_id": "mine-1"}

        async with grpc.aio.insecure_channel(edge.envoy.target) as channel:
            stub = session_service_pb2_grpc.SessionServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetSession(
                    session_service_pb2.GetSessionRequest(session_id=UUID),
                    metadata=[*headers.items(), ("x-request-id", "mine-2")],
                )
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        status, info = status_of(refused.value)
        assert (status.code, status.message) == (16, refused.value.details())
        assert (info.reason, info.domain, dict(info.metadata)) == (
            reason,
            "aiagent",
            {"request_id": "mine-2"},
        )

    async def test_gRPC_web_is_refused_alike(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/aiagent.session.v1.SessionService/GetSession",
            content=struct.pack(">BI", 0, 0),
            headers={"content-type": "application/grpc-web+proto", "origin": "https://console.example.com"},
        )
        assert answer.headers["grpc-status"] == "16"
        assert answer.headers["grpc-status-details-bin"]
        assert answer.headers["access-control-allow-origin"] == "https://console.example.com"
        assert "grpc-status-details-bin" in answer.headers["access-control-expose-headers"]

    async def test_of_our_own_are_taken(self, edge: Edge, client: httpx.AsyncClient) -> None:
        answer = await client.get(SESSION, headers=bearer(edge))
        assert answer.status_code == 200, answer.text
        assert edge.services.metadata["authorization"].startswith("Bearer ")

    @pytest.mark.parametrize("scheme", ["bearer ", "BEARER ", "Bearer   "])
    async def test_the_scheme_is_taken_in_any_case(
        self, scheme: str, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        headers = {"authorization": bearer(edge)["authorization"].replace("Bearer ", scheme)}
        assert (await client.get(SESSION, headers=headers)).status_code == 200
        assert edge.services.metadata["authorization"].startswith("Bearer ey")

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/api/v1/openapi.json", "/.well-known/jwks.json"])
    async def test_are_not_needed_for_what_is_public(self, path: str, client: httpx.AsyncClient) -> None:
        assert (await client.get(path)).status_code == 200


class TestReach:
    async def test_the_executor_has_no_route(self, edge: Edge) -> None:
        async with grpc.aio.insecure_channel(edge.envoy.target) as channel:
            stub = executor_service_pb2_grpc.ExecutorServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetExecutor(
                    executor_service_pb2.GetExecutorRequest(), metadata=tuple(bearer(edge).items())
                )
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert status_of(refused.value)[1].reason == "NO_SUCH_METHOD"

    @pytest.mark.parametrize(
        "path", ["/metrics", "/api/v1/nothing", "/aiagent.executor.v1.ExecutorService/RunTurn"]
    )
    async def test_other_paths_are_not_there(self, path: str, edge: Edge, client: httpx.AsyncClient) -> None:
        answer = await client.get(path, headers=bearer(edge))
        assert answer.status_code == 404
        assert (answer.json()["code"], answer.json()["details"][0]["reason"]) == (5, "NO_SUCH_METHOD")

    async def test_headers_of_the_inside_do_not_come_from_outside(
        self, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        inside = {"x-envoy-retry-on": "5xx", "x-aiagent-organization": "theirs", "x-aiagent-local": "404 x"}
        assert (await client.get(SESSION, headers={**bearer(edge), **inside})).status_code == 200
        assert not edge.services.metadata.keys() & inside.keys()

    @pytest.mark.parametrize("sent", ["mine.1_2-3", "x" * 128])
    async def test_a_request_id_goes_through(self, sent: str, edge: Edge, client: httpx.AsyncClient) -> None:
        answer = await client.get(SESSION, headers={**bearer(edge), "x-request-id": sent})
        assert edge.services.metadata["x-request-id"] == answer.headers["x-request-id"] == sent

    @pytest.mark.parametrize("sent", ["a b", "x" * 129, "<script>", ""])
    async def test_what_is_no_request_id_is_replaced(
        self, sent: str, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        answer = await client.get(SESSION, headers={**bearer(edge), "x-request-id": sent})
        made = edge.services.metadata["x-request-id"]
        assert made == answer.headers["x-request-id"] != sent
        assert len(made) == 36


class TestBrowsers:
    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [("https://console.example.com", True), ("https://console.example.com.evil.test", False)],
    )
    async def test_ask_before_they_call(self, origin: str, allowed: bool, client: httpx.AsyncClient) -> None:
        answer = await client.options(
            "/api/v1/sessions",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )
        assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
        if allowed:
            assert answer.status_code == 200
            assert "authorization" in answer.headers["access-control-allow-headers"]

    async def test_errors_can_be_read_by_pages(self, client: httpx.AsyncClient) -> None:
        answer = await client.get(SESSION, headers={"origin": "https://console.example.com"})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "https://console.example.com"

    @pytest.mark.parametrize("path", ["/docs", "/redoc"])
    async def test_get_pages_that_trust_nobody_else(self, path: str, client: httpx.AsyncClient) -> None:
        answer = await client.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in answer.text
        assert "https://" not in answer.text

    async def test_are_led_to_the_documents(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/", headers={"host": "evil.example"})
        assert (answer.status_code, answer.headers["location"]) == (302, "/docs")

    async def test_scripts_come_compressed(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/static/swagger-ui-bundle.js", headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-type"].startswith("text/javascript")


class TestPaths:
    @pytest.mark.parametrize(
        "query",
        [
            f"session_id={OTHER}",
            f"sessionId={OTHER}",
            f"session%5Fid={OTHER}",
            "%73ession_id",
            "exclude_deltas=true&&session_id=",
        ],
    )
    async def test_the_query_does_not_override_them(
        self, query: str, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        origin = {"origin": "https://console.example.com"}
        answer = await client.get(f"{SESSION}/watch?{query}", headers={**bearer(edge), **origin})
        assert answer.status_code == 400, answer.text
        assert answer.json()["details"][0]["reason"] == "INVALID_REQUEST"
        [violation] = answer.json()["details"][1]["field_violations"]
        assert violation["field"] == "session_id"
        assert "path" in violation["description"]
        assert answer.headers["access-control-allow-origin"] == origin["origin"]

    async def test_nor_any_other_name_in_them(self, edge: Edge, client: httpx.AsyncClient) -> None:
        answer = await client.get(f"{SESSION}/turns/{UUID}/wait?turn_id={UUID}", headers=bearer(edge))
        assert answer.status_code == 400
        assert answer.json()["details"][1]["field_violations"][0]["field"] == "turn_id"

    async def test_a_fixed_word_is_no_value(self, edge: Edge, client: httpx.AsyncClient) -> None:
        path = f"/api/v1/schedules/preview?schedule_id={UUID}"
        answer = await client.get(path, headers=bearer(edge))
        assert answer.status_code == 200, answer.text
        assert edge.services.received["PreviewSchedule"][0].schedule_id == UUID  # type: ignore[attr-defined]

    @pytest.mark.parametrize("blank", ["+", "%20"])
    async def test_a_blank_is_written_in_two_ways(
        self, blank: str, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        path = f"/api/v1/schedules/preview?spec.cron_expression=*/5{blank}9%2D17{blank}*{blank}*{blank}*"
        assert (await client.get(path, headers=bearer(edge))).status_code == 200
        [received] = edge.services.received["PreviewSchedule"]
        assert received.spec.cron_expression == "*/5 9-17 * * *"  # type: ignore[attr-defined]

    async def test_nor_does_the_body(self, edge: Edge, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            f"{SESSION}/messages", headers=bearer(edge), json={"message": "hello", "session_id": OTHER}
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["details"][1]["field_violations"][0]["field"] == "session_id", answer.text

    async def test_where_it_is_no_part_of_the_path_a_name_filters(
        self, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        answer = await client.get(f"/api/v1/permission-requests?session_id={UUID}", headers=bearer(edge))
        assert answer.status_code == 200, answer.text


class TestRefusals:
    async def test_an_unreadable_field_is_named(self, edge: Edge, client: httpx.AsyncClient) -> None:
        answer = await client.post("/api/v1/sessions", headers=bearer(edge), json={"mode": "bogus"})
        assert answer.status_code == 400
        body = answer.json()
        assert body["code"] == 3
        [violation] = body["details"][1]["field_violations"]
        assert violation["field"] == "mode", body

    async def test_too_large_is_said_so(self, edge: Edge, client: httpx.AsyncClient) -> None:
        large = {"message": "x" * (17 << 20)}
        answer = await client.post(f"{SESSION}/query", headers=bearer(edge), json=large)
        assert answer.status_code == 413
        assert (answer.json()["code"], answer.json()["details"][0]["reason"]) == (8, "REQUEST_TOO_LARGE")
        unlimited = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(edge.envoy.target, options=unlimited) as channel:
            stub = session_service_pb2_grpc.SessionServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SendMessage(
                    session_service_pb2.SendMessageRequest(session_id=UUID, **large),
                    metadata=tuple(bearer(edge).items()),
                )
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert status_of(refused.value)[1].reason == "REQUEST_TOO_LARGE"

    async def test_fifteen_mebibytes_go_through(self, edge: Edge, client: httpx.AsyncClient) -> None:
        name = "x" * (15 << 20)
        answer = await client.post("/api/v1/sessions", headers=bearer(edge), json={"name": name})
        assert answer.status_code == 200, answer.text[:500]


class TestOutage:
    async def test_without_services_it_says_so_and_recovers(
        self, edge: Edge, client: httpx.AsyncClient
    ) -> None:
        headers = bearer(edge)
        assert (await client.get("/health")).json() == {"status": "ok"}
        await edge.vanish()
        assert (await answered(client, status=503)).json() == {"status": "unavailable"}
        answer = await client.get(SESSION, headers=headers)
        assert answer.status_code == 503
        assert answer.json()["code"] == 14
        assert [detail["@type"].rpartition(".")[2] for detail in answer.json()["details"]] == [
            "ErrorInfo",
            "RetryInfo",
        ]
        await edge.serve()
        await answered(client, SESSION, headers=headers)
        await answered(client)

    async def test_a_draining_service_keeps_its_streams(self, edge: Edge, client: httpx.AsyncClient) -> None:
        async with grpc.aio.insecure_channel(edge.envoy.target) as channel:
            stub = session_service_pb2_grpc.SessionServiceStub(channel)
            watch = stub.WatchSession(
                session_service_pb2.WatchSessionRequest(session_id=UUID), metadata=tuple(bearer(edge).items())
            )
            assert await watch.read() is not grpc.aio.EOF
            await edge.not_serving()
            await answered(client, status=503)
            await answered(client, SESSION, status=503, headers=bearer(edge))
            assert await watch.read() is not grpc.aio.EOF


async def test_slow_headers_are_cut_off(edge: Edge) -> None:
    host, _, port = edge.envoy.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /docs HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    async with asyncio.timeout(25):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408")
    writer.close()
