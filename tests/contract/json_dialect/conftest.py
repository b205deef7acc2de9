"""A real Envoy before a gRPC server that knows every method and answers with samples."""

import asyncio
import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from deploy.envoy.config import SERVICES, EnvoySettings, render
from tests.contract.json_dialect.samples import sample

ROOT = Path(__file__).parents[3]
GENERATED = ROOT / "protos" / "gen"

# What of the public listener's chain makes the dialect; tokens, CORS and the like have tests of their own.
FILTERS = ("lua", "grpc_json_transcoder", "router")


def public_methods() -> dict[str, MethodDescriptor]:
    """Returns the methods with an HTTP rule by their full name."""
    pool = descriptor_pool.Default()
    found: dict[str, MethodDescriptor] = {}
    for path in sorted((GENERATED / "python" / "aiagent").rglob("*_service_pb2.py")):
        module = path.relative_to(GENERATED / "python").with_suffix("").as_posix()
        importlib.import_module(module.replace("/", "."))
        file = pool.FindFileByName(f"{module.removesuffix('_pb2')}.proto")
        for service in file.services_by_name.values():
            for method in service.methods:
                if method.GetOptions().HasExtension(annotations_pb2.http):
                    found[method.full_name] = method
    return found


class Upstream(grpc.GenericRpcHandler):
    """Keeps the last request of each method and answers with a sample, or as a test says.

    Attributes:
        received: messages of the last call by the method's name.
        failure: a status to end every call with, after the answers.
    """

    def __init__(self, methods: dict[str, MethodDescriptor]) -> None:
        self._methods = methods
        self.received: dict[str, list[Message]] = {}
        self.failure: status_pb2.Status | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = self._methods.get(handler_call_details.method.strip("/").replace("/", "."))
        if method is None:
            return None
        kinds: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler]] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
        }
        shape = (bool(method.client_streaming), bool(method.server_streaming))
        return kinds[shape](
            self._answers(method) if method.server_streaming else self._answer(method),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _answer(self, method: MethodDescriptor) -> Callable[..., Any]:
        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Message:
            messages = [message async for message in request] if method.client_streaming else [request]
            self.received[method.name] = messages
            await self._fail(context)
            return sample(method.output_type)

        return answer

    def _answers(self, method: MethodDescriptor) -> Callable[..., Any]:
        async def answer(request: Message, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
            self.received[method.name] = [request]
            for _ in range(3):
                yield sample(method.output_type)
            await self._fail(context)

        return answer

    async def _fail(self, context: grpc.aio.ServicerContext) -> None:
        if self.failure is not None:
            await context.abort_with_status(rpc_status.to_status(self.failure))


def envoy_configuration(listen: Path, upstream: Path) -> dict[str, Any]:
    """Returns the suite's own configuration, cut down to transcoding from one Unix socket to another."""
    nowhere = {name: ["127.0.0.1:1"] for name in SERVICES}
    settings = EnvoySettings(
        host="127.0.0.1", port=1, endpoints=nowhere, admin_socket=listen.with_name("admin")
    )
    [listener] = json.loads(render(settings))["staticResources"]["listeners"]
    [chain] = listener["filterChains"]
    [manager] = chain["filters"]
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    manager["typedConfig"]["routeConfig"] = {
        "virtualHosts": [{"name": "all", "domains": ["*"], "routes": [route]}]
    }
    manager["typedConfig"]["httpFilters"] = [
        item
        for item in manager["typedConfig"]["httpFilters"]
        if item["name"].removeprefix("envoy.filters.http.") in FILTERS
    ]
    assert len(manager["typedConfig"]["httpFilters"]) == len(FILTERS)
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster = {
        "name": "upstream",
        "connectTimeout": "1s",
        "typedExtensionProtocolOptions": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicitHttpConfig": {"http2ProtocolOptions": {}},
            }
        },
        "loadAssignment": {
            "clusterName": "upstream",
            "endpoints": [{"lbEndpoints": [{"endpoint": {"address": {"pipe": {"path": str(upstream)}}}}]}],
        },
    }
    listener["address"] = {"pipe": {"path": str(listen)}}
    return {"staticResources": {"listeners": [listener], "clusters": [cluster]}}


@pytest.fixture(scope="session")
async def upstream_and_socket() -> AsyncIterator[tuple[Upstream, Path]]:
    methods = public_methods()
    upstream = Upstream(methods)
    # A path of its own: a Unix socket's name may have a hundred bytes, pytest's folders have more.
    with tempfile.TemporaryDirectory(prefix="dialect") as folder:
        edge, backend, config = (Path(folder, name) for name in ("edge", "backend", "envoy.json"))
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((upstream,))
        server.add_insecure_port(f"unix:{backend}")
        await server.start()
        config.write_text(json.dumps(envoy_configuration(edge, backend)), "utf-8")
        envoy = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("envoy"),
            *("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "info"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert envoy.stderr is not None
        log: list[str] = []
        try:
            async with asyncio.timeout(30):
                while not (log and "starting main dispatch loop" in log[-1]):
                    line = await envoy.stderr.readline()
                    assert line, "".join(log[-5:])
                    log.append(line.decode())
            reader = asyncio.create_task(envoy.stderr.read())
            yield upstream, edge
            reader.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                envoy.terminate()
            await envoy.wait()
            await server.stop(None)


@pytest.fixture
async def upstream(upstream_and_socket: tuple[Upstream, Path]) -> AsyncIterator[Upstream]:
    upstream = upstream_and_socket[0]
    upstream.received.clear()
    yield upstream
    upstream.failure = None


@pytest.fixture
async def client(upstream_and_socket: tuple[Upstream, Path]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(upstream_and_socket[1]))
    async with httpx.AsyncClient(transport=transport, base_url="http://edge", timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def openapi() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GENERATED / "openapi.json").read_text("utf-8"))
    return document


def failure(code: int, message: str, *details: Message) -> status_pb2.Status:
    """Returns a status with details, as services send it."""
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status
