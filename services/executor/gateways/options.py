"""The SDK's options from ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from claude_agent_sdk import AgentDefinition, ClaudeAgentOptions, HookMatcher

from services.executor.usecases.ports import TurnRequest

DEFAULT_MODEL = "claude-sonnet-4-5"
MAX_OUTPUT_LINE_BYTES = 64 * 1024 * 1024
_EFFORT: dict[str, Literal["low", "medium", "high", "max"]] = {
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
    "MAX": "max",
}
# What the CLI knows of itself and must not do: it would wait for a person at a terminal that is not there.
_NOT_HERE = ["AskUserQuestion"]


def fingerprint(options: Mapping[str, Any]) -> str:
    """What a live client was started with; another session's options, or changed ones, need a new client."""
    return repr(sorted(options.items(), key=lambda item: item[0]))


def build(
    request: TurnRequest,
    *,
    launcher: Path,
    workspace: Path,
    prompt_file: Path,
    resume: bool,
    session_id: str,
    hook: Any,
    permit: Any,
    hook_timeout_seconds: float,
    stderr: Any,
    mirror: Any,
    config_dir: Path,
) -> ClaudeAgentOptions:
    """Builds the options of a client.

    Args:
        request: The turn it is started for.
        launcher: The program to start instead of the CLI.
        workspace: Its working directory.
        prompt_file: Where the system prompt may be written: as an argument a large one fails.
        resume: Whether the conversation exists already.
        session_id: The CLI's session id, to resume or to begin.
        hook: The `PreToolUse` callback.
        permit: Answers what the CLI asks all the same.
        hook_timeout_seconds: Longer than any decision may take.
        stderr: Takes the CLI's error output, line by line.
        mirror: Takes what the CLI writes to its transcripts.
        config_dir: Where those lie; the launcher sets the agent's environment, this is for the SDK.
    """
    options = request.options
    system_prompt: Any = {"type": "preset", "preset": "claude_code"}
    if options.get("system_prompt"):
        prompt_file.write_text(str(options["system_prompt"]), encoding="utf-8")
        system_prompt = {"type": "file", "path": str(prompt_file)}
    schema = options.get("output_schema")
    return ClaudeAgentOptions(
        cli_path=launcher,
        cwd=workspace,
        model=str(options.get("model") or DEFAULT_MODEL),
        system_prompt=system_prompt,
        # Every call is decided by the hook: the CLI's own lists would only decide some of them differently.
        permission_mode="plan" if options.get("permission_mode") == "PLAN" else "default",
        disallowed_tools=[
            *_NOT_HERE,
            *(rule for rule in options.get("disallowed_tools") or () if "(" not in rule),
        ],
        max_turns=int(options["max_turns"]) if options.get("max_turns") else None,
        mcp_servers=_mcp_servers(options.get("mcp_servers") or {}),
        strict_mcp_config=True,
        agents=_agents(options.get("agents") or {}) or None,
        output_format={"type": "json_schema", "schema": schema} if schema else None,
        effort=_EFFORT.get(str(options.get("effort") or "")),
        max_thinking_tokens=int(options["max_thinking_tokens"])
        if options.get("max_thinking_tokens")
        else None,
        # Nothing that lies in the workspace may configure the agent that works in it.
        setting_sources=[],
        # Nor may a program that runs in the sandbox speak to it as the user does: its words would be in no log.
        settings=json.dumps({"crossSessionInbound": "off"}),
        include_partial_messages=True,
        max_buffer_size=MAX_OUTPUT_LINE_BYTES,
        resume=session_id if resume else None,
        session_id=None if resume else session_id,
        hooks={"PreToolUse": [HookMatcher(hooks=[hook], timeout=hook_timeout_seconds, on_failure="block")]},
        can_use_tool=permit,
        stderr=stderr,
        env={"CLAUDE_CONFIG_DIR": str(config_dir)},
        session_store=mirror,
        session_store_flush="eager",
    )


def _mcp_servers(servers: Mapping[str, Any]) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for name, server in servers.items():
        if "stdio" in server:
            stdio = server["stdio"]
            built[name] = {
                "type": "stdio",
                "command": stdio["command"],
                "args": list(stdio.get("args") or ()),
                "env": dict(stdio.get("env") or {}),
            }
        else:
            kind = "sse" if "sse" in server else "http"
            remote = server[kind]
            built[name] = {"type": kind, "url": remote["url"], "headers": dict(remote.get("headers") or {})}
    return built


def _agents(agents: Mapping[str, Any]) -> dict[str, AgentDefinition]:
    return {
        name: AgentDefinition(
            description=agent["description"],
            prompt=agent["prompt"],
            tools=list(agent.get("tools") or ()) or None,
            model=agent.get("model") or None,
        )
        for name, agent in agents.items()
    }
