"""The services of the suite: composed in this process, or asked whether they serve."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc
import httpx
from grpc_health.v1 import health_pb2
from pydantic import ValidationError

from aiagent.executor.v1 import executor_service_pb2 as executor_pb2
from aiagent.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from deploy.local.environment import Plan, Replica
from deploy.local.state import LocalError
from services.kernel import lifecycle
from services.kernel.errors import ServiceError
from services.kernel.grpc import open_channel
from services.kernel.identity import ServiceTokenSigner
from services.kernel.identity.keys import private_key_from_text

NAMES = ("auth", "executor", "session", "scheduler")
"""In the order in which they start."""
_CHECK = "/grpc.health.v1.Health/Check"


async def compose(name: str, variables: Mapping[str, str]) -> lifecycle.Service:
    """Composes a service in this process, from the variables it would have as a process of its own.

    Args:
        name: of the service.
        variables: what it is told beside the environment of this process.

    Raises:
        LocalError: A setting cannot be used, or something it needs is not there.
    """
    settings = importlib.import_module(f"services.{name}.settings")
    bootstrap = importlib.import_module(f"services.{name}.bootstrap")
    kind = getattr(settings, f"{name.capitalize()}Settings")
    saved = {key: os.environ.get(key) for key in variables}
    # For as long as the settings are read: passwords in the environment would be handed to every child.
    os.environ.update(variables)
    try:
        values = kind()
    except ValidationError as error:
        first = error.errors()[0]
        variable = "_".join(str(part) for part in first["loc"]).upper()
        raise LocalError(f"AIAGENT_{variable.removeprefix('AIAGENT_')}: {first['msg']}") from None
    finally:
        for key, value in saved.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
    try:
        return await bootstrap.build(values)  # type: ignore[no-any-return]  # found by name
    except (ServiceError, ValueError) as error:
        raise LocalError(f"{name}: {error}") from error


class Serving:
    """Asks the standard health service of a target."""

    def __init__(self, target: str) -> None:
        """Args: target: `host:port`."""
        self._target = target

    async def __call__(self) -> bool:
        """Whether it says that it serves."""
        async with grpc.aio.insecure_channel(
            self._target, options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            check = channel.unary_unary(
                _CHECK,
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Ready:
    """Asks a process that serves no calls whether it does its work."""

    def __init__(self, metrics: str) -> None:
        """Args: metrics: `host:port` of its metrics."""
        self._host, _, port = metrics.rpartition(":")
        self._port = int(port)

    async def __call__(self) -> bool:
        """Whether it says so."""
        # Without a client's library: making one reads the authorities of TLS, for a tenth of a second.
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(b"GET /ready HTTP/1.0\r\n\r\n")
                    return (await reader.readline()).split()[1:2] == [b"200"]
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False


def readiness(replica: Replica) -> Callable[[], Awaitable[bool]]:
    """What asks a process whether it is ready."""
    return Serving(replica.listen) if replica.listen else Ready(replica.metrics)


async def answering(target: str, timeout_seconds: float = 20.0) -> None:
    """Waits until calls get through the public port, and until it can judge tokens.

    Raises:
        LocalError: They do not in time.
    """
    serving = Serving(target)
    try:
        async with asyncio.timeout(timeout_seconds), httpx.AsyncClient(trust_env=False) as client:
            while not await serving():
                await asyncio.sleep(0.02)
            while (await client.get(f"http://{target}/api/v1/auth/me", headers=_FORGED)).status_code != 401:
                await asyncio.sleep(0.02)
    except (TimeoutError, httpx.HTTPError):
        raise LocalError(f"calls to {target} do not get through to the services") from None


def _forged() -> str:
    """A token that is well-formed and signed by nobody: refused as soon as the edge has the keys to tell."""
    header = {"alg": "EdDSA", "typ": "JWT", "kid": "nobody"}
    claims = {"iss": "aiagent", "aud": "aiagent-api", "sub": "nobody", "exp": 2**32}
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), bytes(64)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


_FORGED = {"authorization": f"Bearer {_forged()}"}


@dataclass(frozen=True, slots=True)
class ExecutorFacts:
    """What an executor says of itself: how it keeps agents apart, and whether its model is the scripted one."""

    isolation: str
    offline: bool


async def executor_facts(plan: Plan) -> ExecutorFacts:
    """Asks the first executor, in the name of the session service, the only one it listens to."""
    signer = ServiceTokenSigner("session", private_key_from_text(plan.secrets.service_keys["session"]))
    async with open_channel(plan.targets("executor")[0], signer=signer, audience="executor") as channel:
        answer = await ExecutorServiceStub(channel).GetExecutor(
            executor_pb2.GetExecutorRequest(), timeout=5.0
        )
    kind = executor_pb2.GetExecutorResponse.Isolation.Name(answer.isolation)
    return ExecutorFacts(kind, answer.offline_model)
