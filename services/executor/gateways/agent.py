"""One actor owns one `ClaudeSDKClient`: its task alone connects, reads and disconnects it.

A client is never connected twice: on a fault it is discarded, and the conversation is resumed by the next one from the
CLI's own transcript. Stopping is interrupt, a moment, disconnect, and then the kernel's help.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import structlog
from claude_agent_sdk import (
    ClaudeSDKClient,
    ClaudeSDKError,
    Message,
    MirrorErrorMessage,
    ResultMessage,
)

from services.executor.domain.items import AgentStarted, AttemptEnded, BlockCompleted, Notice, Outcome, Spent
from services.executor.gateways import options as sdk_options
from services.executor.gateways.agent_process import AgentProcess, Bounds
from services.executor.gateways.isolation import AgentPlace, Isolation
from services.executor.gateways.messages import TurnReader, answers, goes_on
from services.executor.gateways.metering import Account
from services.executor.gateways.model_gateway import ModelGateway
from services.executor.gateways.prompts import one_message, prompt
from services.executor.gateways.tool_gate import ToolGate
from services.executor.gateways.transcripts import TranscriptMirror
from services.executor.usecases.ports import (
    AgentDied,
    Ask,
    Emit,
    TranscriptPort,
    TranscriptRefused,
    TranscriptUnavailable,
    TurnRequest,
)
from services.kernel.clock import SystemClock
from services.kernel.context import about, detached
from services.kernel.supervision import BACKGROUND_FAILURES

_log = structlog.get_logger(__name__)
CONNECT_SECONDS = 60.0
DISCONNECT_SECONDS = 2.0
_LOOK_SECONDS = 0.01
# What the CLI calls a call of the model that failed.
_BY_THE_MODEL = ("MODEL_ERROR", "AGENT_ERROR")
SYNTHETIC = "<synthetic>"
"""What the CLI calls the model of texts that it writes itself."""
NOT_SAVED = "the conversation could not be saved: if this executor is lost, so is what was said in this turn"


class ClaudeAgent:
    """See `usecases.ports.Agent`."""

    def __init__(
        self,
        private: Path,
        workspaces: Path,
        isolation: Isolation,
        gateway: ModelGateway,
        transcripts: TranscriptPort,
        *,
        offline_model: bool,
        hook_timeout_seconds: float,
        bounds: Bounds,
    ) -> None:
        """Use `agents.ClaudeAgents.make`."""
        self._private = private
        self._home = private / "home"
        self._workspaces = workspaces
        self._isolation = isolation
        self._gateway = gateway
        self._transcripts = transcripts
        self._mirror: TranscriptMirror | None = None
        self._resume = False
        self._offline = offline_model
        self._hook_timeout = hook_timeout_seconds
        self._bounds = bounds
        self._process: AgentProcess | None = None
        self._token = ""
        self._client: ClaudeSDKClient | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] = asyncio.Future()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=64)
        self._closing = asyncio.Event()
        self._killing: asyncio.Task[None] | None = None
        self._alive = False
        self._fingerprint = ""
        self._gate = ToolGate()
        self._account = Account()
        self._errors: list[str] = []
        self.cli_session_id = ""

    @property
    def alive(self) -> bool:
        """Whether it can take a turn."""
        return self._alive

    def fits(self, request: TurnRequest) -> bool:
        """Whether it stands where the turn begins."""
        return (
            self.cli_session_id == request.cli_session_id
            and self._fingerprint == sdk_options.fingerprint(request.options)
            and request.attempt == 1
            and self._mirror is not None
            and self._mirror.whole
            and self._mirror.position == request.transcript_position
        )

    # Start and stop

    async def prepare(self, request: TurnRequest) -> None:
        """Brings the conversation here.

        Raises:
            AgentDied: It cannot be read.
        """
        for path in (self._private, self._home, self._home / ".claude", self._home / "tmp"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        workspace = self._workspaces / request.workspace
        workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.cli_session_id = request.cli_session_id or str(uuid4())
        self._mirror = TranscriptMirror(self._transcripts, self._home, workspace, SystemClock())
        self._mirror.begin(request.attempt_pass, request.transcript_position)
        try:
            self._resume = await self._mirror.restore(self.cli_session_id, known=bool(request.cli_session_id))
        except (TranscriptUnavailable, TranscriptRefused, OSError) as error:
            raise AgentDied(f"the conversation cannot be read: {error}") from error

    async def start(self, request: TurnRequest) -> None:
        """Starts the process, after `prepare` if that was not done.

        Raises:
            AgentDied: It does not come up.
        """
        if self._mirror is None:
            await self.prepare(request)
        workspace = self._workspaces / request.workspace
        self._fingerprint = sdk_options.fingerprint(request.options)
        self._token = self._gateway.admit()
        launcher = self._private / "launch"
        place = AgentPlace(workspace, self._home, self._gateway.socket, self._gateway.port, self._token)
        self._isolation.write_launcher(place, launcher)
        self._client = ClaudeSDKClient(
            sdk_options.build(
                request,
                launcher=launcher,
                workspace=workspace,
                prompt_file=self._home / "system-prompt.md",
                resume=self._resume,
                session_id=self.cli_session_id,
                hook=self._gate.decide,
                permit=self._gate.permit,
                hook_timeout_seconds=self._hook_timeout,
                stderr=self._note,
                mirror=self._mirror,
                config_dir=self._home / ".claude",
            )
        )
        self._process = AgentProcess(self._client, self._token, self._isolation, self._bounds, workspace)
        # It outlives the turn that it was started for.
        named = about(session_id=str(request.session_id))
        self._task = asyncio.create_task(self._own(self._client, self._process), name="agent", context=named)
        await self._ready

    def _note(self, line: str) -> None:
        self._errors = [*self._errors[-20:], line]

    async def _own(self, client: ClaudeSDKClient, process: AgentProcess) -> None:
        """The actor: connects, reads, disconnects."""
        try:
            if await self._connect(client):
                await self._until_closed(client, process)
        finally:
            await self._disconnect(client, process)
            self._gateway.dismiss(self._token)

    async def _connect(self, client: ClaudeSDKClient) -> bool:
        failure = ""
        try:
            if self._closing.is_set():
                raise asyncio.CancelledError
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect()
        except asyncio.CancelledError:
            # By `stop`; the task ends by itself.
            failure = "the agent was stopped before it was up"
        except Exception as error:
            _log.warning("agent does not start", error=str(error)[:500], stderr=self._errors[-5:])
            failure = "the agent process did not start"
        self._alive = not failure
        if not self._ready.done():
            if failure:
                self._ready.set_exception(AgentDied(failure))
            else:
                self._ready.set_result(None)
        return not failure

    async def _until_closed(self, client: ClaudeSDKClient, process: AgentProcess) -> None:
        reading = asyncio.create_task(self._read(client), name="agent-reader")
        closing = asyncio.create_task(self._closing.wait(), name="agent-closing")
        bounding = asyncio.create_task(self._hold_to_bounds(process), name="agent-bounds")
        tasks = (reading, closing, bounding)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._alive = False
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    BACKGROUND_FAILURES.labels("agent").inc()
                    _log.error("an agent is not looked after any more, and ends", exc_info=result)

    async def _hold_to_bounds(self, process: AgentProcess) -> None:
        """Kills the agent when it takes more than it may: its neighbours must not pay for it."""
        await process.until_too_large()
        await self.kill()

    async def _read(self, client: ClaudeSDKClient) -> None:
        try:
            async for message in client.receive_messages():
                await self._messages.put(message)
        except ClaudeSDKError as error:
            _log.info("agent ended", error=str(error)[:300], stderr=self._errors[-5:])
        finally:
            self._alive = False
            # The turn that reads must learn of the end even when the queue is full.
            while True:
                try:
                    self._messages.put_nowait(None)
                    break
                except asyncio.QueueFull:
                    self._messages.get_nowait()

    async def _disconnect(self, client: ClaudeSDKClient, process: AgentProcess) -> None:
        first = process.first()
        try:
            async with asyncio.timeout(DISCONNECT_SECONDS):
                await client.disconnect()
        except Exception as error:
            # The SDK raises bare exceptions too; whatever it is, the process must not outlive its client.
            _log.info("agent did not disconnect", error=f"{type(error).__name__}: {error}"[:300])
        finally:
            await process.end_rest(first)

    async def interrupt(self) -> None:
        """Asks the agent to stop its turn; the caller says for how long."""
        if self._client is None or not self._alive:
            return
        try:
            await self._client.interrupt()
        except Exception as error:
            # An error answer of the CLI is a bare Exception.
            _log.info("agent did not take the interrupt", error=f"{type(error).__name__}: {error}"[:300])

    async def kill(self) -> None:
        """Kills the process and all that it has started, and returns when they run no more."""
        self._alive = False
        self._closing.set()
        if self._killing is None:
            self._killing = asyncio.create_task(self._kill(), name="agent-kill", context=detached())
        await asyncio.shield(self._killing)

    async def _kill(self) -> None:
        if self._process is not None:
            await self._known()
            await self._process.end()
        if self._task is not None and not self._ready.done():
            self._task.cancel()

    async def _known(self) -> None:
        """Waits for the process that is being started: a start that is cancelled before forgets what it has forked."""
        while self._process is not None and self._process.first() is None:
            if self._ready.done() or self._task is None or self._task.done():
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Ends the process, whatever it does."""
        self._alive = False
        self._closing.set()
        if self._task is not None:
            if not self._ready.done():
                await self.kill()
            await asyncio.shield(asyncio.gather(self._task, return_exceptions=True))

    # Turns

    async def run(self, request: TurnRequest, emit: Emit, ask: Ask, *, reused: bool) -> None:
        """Runs a turn.

        Raises:
            AgentDied: The process ended before the turn did.
        """
        client, mirror = self._client, self._mirror
        if client is None or mirror is None or not self._alive:
            raise AgentDied("the agent process is gone")
        while not self._messages.empty():
            self._messages.get_nowait()
        self._gate.open(ask)
        self._gateway.take_refusal(self._token)
        self._account = self._gateway.open_account(self._token, request.budget_usd)
        reader = TurnReader(structured=bool(request.options.get("output_schema")))
        mirror.begin(request.attempt_pass)
        known = mirror.holds(str(request.prompt_id))
        text, message_id = prompt(request, known=known, answered=mirror.answered)
        try:
            await client.query(one_message(text, message_id, self.cli_session_id))
            await emit(
                AgentStarted(
                    self.cli_session_id,
                    reused,
                    str(request.options.get("model") or sdk_options.DEFAULT_MODEL),
                    self._offline,
                )
            )
            while True:
                message = await self._messages.get()
                if message is None and self._process is not None and self._process.overrun:
                    # Another attempt would take as much again.
                    await self.kill()
                    await emit(self._failed(*self._process.overrun))
                    return
                if message is None:
                    raise AgentDied("the agent process ended")
                if isinstance(message, MirrorErrorMessage):
                    mirror.doubt()
                if isinstance(message, ResultMessage) and not answers(message, message_id):
                    continue
                for item in reader.read(message):
                    if isinstance(item, AttemptEnded):
                        if not await mirror.settle():
                            await emit(Notice("TRANSCRIPT_NOT_SAVED", NOT_SAVED))
                        await emit(self._explained(item))
                        return
                    if isinstance(item, BlockCompleted) and item.model == SYNTHETIC and self._account.refused:
                        # The CLI's words on the gateway's refusal; the turn's end says it.
                        continue
                    await emit(item)
                if goes_on(message) and (spent := self._account.take()) is not None:
                    # Told now, so that it is not forgotten with this executor.
                    await emit(spent)
        except (ClaudeSDKError, OSError) as error:
            raise AgentDied("the agent process does not take the message") from error
        finally:
            self._gate.close()

    def settle(self) -> Spent:
        """Ends the turn's account; see `usecases.ports.Agent`."""
        return self._account.close()

    def _failed(self, reason: str, message: str) -> AttemptEnded:
        return AttemptEnded(Outcome.FAILED, reason, message, cli_session_id=self.cli_session_id)

    def _explained(self, ended: AttemptEnded) -> AttemptEnded:
        """Says why a call of the model failed: the budget, or what the API refuses for good and a person must do."""
        refusal = self._gateway.take_refusal(self._token)
        if ended.outcome is not Outcome.FAILED or ended.reason not in _BY_THE_MODEL:
            return ended
        if self._account.refused:
            return replace(
                ended,
                outcome=Outcome.BUDGET_EXCEEDED,
                reason="BUDGET_EXCEEDED",
                message="the budget is used up",
            )
        if refusal is None:
            return ended
        return replace(ended, reason=refusal.reason, message=refusal.message)
