"""The floor of every relay: the Claude Agent SDK in the process that wants the tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, StreamEvent

from benchmarks.measurement import CpuMeter
from benchmarks.stamped_tokens import WARM_UP_TOKENS, Sample, Stream, cpu_per_1000_tokens, in_twos, speech
from services.executor.gateways.isolation import AgentPlace, Isolation
from services.executor.gateways.model_gateway import ModelGateway
from services.executor.gateways.offline_model import answer


class Floor:
    """CLIs of this process, read by the SDK, with the offline model in this process, as it is in an executor's."""

    def __init__(self, directory: Path, count: int) -> None:
        self._directory = directory
        self._count = count
        self._gateway = ModelGateway(directory / "model.sock", base_url="", api_key="", offline=answer)
        self._clients: list[ClaudeSDKClient] = []

    async def start(self) -> None:
        """Starts the CLIs and lets each answer once."""
        await self._gateway.start()
        self._clients = [self._client(number) for number in range(self._count)]
        await in_twos([self._first_turn(client) for client in self._clients])

    def _client(self, number: int) -> ClaudeSDKClient:
        home, workspace = self._directory / f"home-{number}", self._directory / f"work-{number}"
        for path in (home / "tmp", workspace):
            path.mkdir(parents=True)
        token = self._gateway.admit()
        self._gateway.open_account(token)
        place = AgentPlace(workspace, home, self._gateway.socket, self._gateway.port, token)
        return ClaudeSDKClient(
            ClaudeAgentOptions(
                cwd=workspace,
                env=Isolation("PROCESS", self._directory).environment(place),
                model="claude-sonnet-4-5",
                system_prompt={"type": "preset", "preset": "claude_code"},
                setting_sources=[],
                strict_mcp_config=True,
                include_partial_messages=True,
            )
        )

    async def _first_turn(self, client: ClaudeSDKClient) -> None:
        await client.connect()
        await self._observe(client, 2)

    async def _observe(self, client: ClaudeSDKClient, tokens: int) -> Stream:
        stream = Stream()
        await client.query(speech(tokens))
        async for message in client.receive_messages():
            if isinstance(message, StreamEvent):
                delta = message.event.get("delta", {})
                if delta.get("type") == "text_delta":
                    stream.take(delta["text"])
            elif isinstance(message, ResultMessage):
                break
        return stream

    async def measure(self, streams: int, tokens: int) -> Sample:
        """Lets so many CLIs speak at once."""
        process = psutil.Process()
        agents = process.children(recursive=True)
        meter = CpuMeter({"service": [process], "all": [process, *agents]})
        meter.start()
        seen = await asyncio.gather(*(self._observe(client, tokens) for client in self._clients[:streams]))
        cpu = cpu_per_1000_tokens(meter, streams * tokens)
        values = [value for stream in seen for value in stream.milliseconds[WARM_UP_TOKENS:]]
        return Sample("floor", "process", streams, values, cpu)

    async def stop(self) -> None:
        """Ends the CLIs."""
        for client in self._clients:
            await client.disconnect()
        await self._gateway.stop()
