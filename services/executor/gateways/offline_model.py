"""The offline model: a scripted Messages API, for tests, demonstrations and benchmarks.

The script rides in the prompt: `<<SCRIPT>>[step, …]<<END>>`. The n-th model call after that message plays the n-th
step, so the model keeps no state and serves any number of sessions. A step is an object with any of:

* `thinking`, `text`: what is said; `tokens_per_second` paces it, `times` repeats the text; with `stamped` each token of
  the text becomes the monotonic clock's nanoseconds at the moment it is sent, so that an observer on the same machine
  sees how long it took.
* `tools`: a list of `{"name", "input"}` to call.
* `recall`: a regular expression; the answer is what it finds in the conversation before the message.
* `delay_seconds`: waits first.
* `status`: answers with an HTTP error; `cut`: breaks the stream after that many tokens; `garbage`: sends nonsense;
  `hang`: never answers.

An agent that is told that a person has allowed a call makes that call first, as a model would; then the script goes on.

A message without a script is answered with a few words; one that asks for a file or a listing is answered with the tool
calls that a model would make.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

from aiohttp import web

_SCRIPT = re.compile(r"<<SCRIPT>>(.*?)<<END>>", re.DOTALL)
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
_TOKEN = re.compile(r"\s*\S+\s*?|\s+", re.DOTALL)
_WRITE = re.compile(r"\b(?:write|create|make)\b[^.\n]*?\b([\w./-]+\.\w{1,8})\b", re.IGNORECASE)
_LIST = re.compile(r"\b(?:list|show|what)\b[^.\n]*\bfiles?\b", re.IGNORECASE)

_ALLOWED = re.compile(
    r"A person has decided on the call (\S+) with the input (.*?): it is allowed\. Make exactly this call again\."
)

Step = dict[str, Any]


async def answer(
    request: web.Request, body: dict[str, Any], seen: Callable[[bytes], None] | None = None
) -> web.StreamResponse:
    """Answers one call of the Messages API; `seen` is shown each piece of an answer that streams before it is sent."""
    if request.path.endswith("/count_tokens"):
        return web.json_response({"input_tokens": _tokens_in(body)})
    step = _step(body)
    if step.get("delay_seconds"):
        await asyncio.sleep(float(step["delay_seconds"]))
    if step.get("hang"):
        await asyncio.sleep(86_400)
    if step.get("status"):
        return _failure(int(step["status"]))
    blocks = _blocks(step, body)
    if not body.get("stream"):
        return web.json_response(_message(body, blocks))
    response = web.StreamResponse(
        headers={
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "request-id": f"req_{uuid4().hex}",
        }
    )
    await response.prepare(request)
    if step.get("garbage"):
        await response.write(b"event: nonsense\ndata: {not json\n\n")
        return response
    sent = 0
    async for event in _events(body, blocks, step):
        piece = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        if seen is not None:
            seen(piece)
        await response.write(piece)
        sent += event["type"] == "content_block_delta"
        if step.get("cut") and sent >= int(step["cut"]):
            if request.transport is not None:
                request.transport.abort()
            return response
    await response.write_eof()
    return response


def _failure(status: int) -> web.Response:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kinds |= {404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
    error = {"type": kinds.get(status, "api_error"), "message": f"the script asked for status {status}"}
    headers = {"retry-after": "1"} if status in (429, 529) else {}
    return web.json_response({"type": "error", "error": error}, status=status, headers=headers)


# Choosing the step


def _text_of(content: Any) -> str:
    """The text a user wrote: without what the CLI adds for the model to know."""
    if isinstance(content, str):
        return _REMINDER.sub("", content)
    text = "\n".join(
        str(block.get("text", ""))
        for block in content or ()
        if isinstance(block, dict) and block.get("type") == "text"
    )
    return _REMINDER.sub("", text)


def _is_prompt(message: dict[str, Any]) -> bool:
    """Whether a user's message is one, and not the results of tools. After a turn that ended with those, it is both."""
    if message.get("role") != "user":
        return False
    content = message.get("content")
    if isinstance(content, str) or _SCRIPT.search(_text_of(content)):
        return True
    return not any(isinstance(block, dict) and block.get("type") == "tool_result" for block in content or ())


def _step(body: dict[str, Any]) -> Step:
    messages = body.get("messages") or []
    if not body.get("tools"):
        # Side calls (titles, summaries) have no tools and play no step.
        return {"text": "Offline session"}
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if not _is_prompt(message):
            continue
        text = _text_of(message.get("content"))
        allowed = _ALLOWED.findall(text)
        if allowed and not _assistant_turns(messages[index + 1 :]):
            return {"tools": [{"name": name, "input": json.loads(given)} for name, given in allowed]}
        found = list(_SCRIPT.finditer(text))
        if not found:
            if index == len(messages) - 1 and not _is_notice(text):
                return _improvise(text, messages[index + 1 :])
            if _is_notice(text):
                continue
            return _improvise(text, messages[index + 1 :])
        try:
            steps = json.loads(found[-1].group(1))
        except ValueError as error:
            return {"text": f"The script is not JSON: {error}"}
        played = _assistant_turns(messages[index + 1 :])
        if played >= len(steps):
            return {"text": "The script is over."}
        return dict(steps[played])
    return {"text": "Hello."}


def _is_notice(text: str) -> bool:
    """Messages that the CLI or the executor adds; they are no new prompt."""
    stripped = text.strip()
    return not stripped or stripped.startswith(
        ("[Request interrupted", "[The work on", "Continue from where")
    )


def _assistant_turns(messages: list[dict[str, Any]]) -> int:
    """Model calls answered since: adjoining messages of the assistant are one."""
    turns, last = 0, ""
    for message in messages:
        role = str(message.get("role"))
        turns += role == "assistant" and last != "assistant"
        last = role
    return turns


def _improvise(text: str, later: list[dict[str, Any]]) -> Step:
    turn = _assistant_turns(later)
    wanted = _WRITE.search(text)
    if wanted:
        name = wanted.group(1)
        content = f"Written by the offline model.\n\n{text[:500]}\n"
        write = {"name": "Write", "input": {"file_path": name, "content": content}}
        look = {"name": "Bash", "input": {"command": f"ls -l {name} && cat {name}"}}
        steps: list[Step] = [
            {"text": f"I will write {name}.", "tools": [write]},
            {"text": "Let me look at it.", "tools": [look]},
            {"text": f"Done: {name} is in the workspace."},
        ]
    elif _LIST.search(text):
        steps = [
            {"text": "Let me look.", "tools": [{"name": "Bash", "input": {"command": "ls -la"}}]},
            {"text": "These are the files of the workspace."},
        ]
    else:
        steps = [
            {
                "text": "This is the offline model: it follows scripts and does not think. "
                "Set ANTHROPIC_API_KEY to talk with Claude. You wrote: " + text.strip()[:200]
            }
        ]
    return steps[min(turn, len(steps) - 1)]


# Saying it


def _blocks(step: Step, body: dict[str, Any]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if step.get("thinking"):
        blocks.append({"type": "thinking", "thinking": str(step["thinking"]), "signature": "offline"})
    text = str(step.get("text") or "") * int(step.get("times") or 1)
    if step.get("recall"):
        text = _recall(str(step["recall"]), body)
    if text:
        blocks.append({"type": "text", "text": text})
    blocks += [_tool_use(tool) for tool in step.get("tools") or ()]
    return blocks or [{"type": "text", "text": "."}]


def _tool_use(tool: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{uuid4().hex[:24]}",
        "name": tool["name"],
        "input": tool["input"],
    }


def _recall(pattern: str, body: dict[str, Any]) -> str:
    """Looks for a pattern in everything before the last prompt."""
    messages = list(body.get("messages") or ())
    while messages and not (
        _is_prompt(messages[-1]) and _SCRIPT.search(_text_of(messages[-1].get("content")))
    ):
        messages.pop()
    earlier = json.dumps(messages[:-1], ensure_ascii=False)
    try:
        found = re.search(pattern, earlier)
    except re.error as error:
        return f"The pattern is broken: {error}"
    return f"I remember: {found.group(0)}" if found else "I do not remember that."


def _tokens_in(body: dict[str, Any]) -> int:
    return max(1, len(json.dumps(body.get("messages") or [])) // 4)


def _usage(body: dict[str, Any], output: int) -> dict[str, Any]:
    return {
        "input_tokens": _tokens_in(body),
        "output_tokens": output,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "service_tier": "standard",
    }


def _output_tokens(blocks: list[dict[str, Any]]) -> int:
    return max(1, sum(len(json.dumps(block)) for block in blocks) // 4)


def _stop_reason(blocks: list[dict[str, Any]]) -> str:
    return "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"


def _message(body: dict[str, Any], blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "offline"),
        "content": blocks,
        "stop_reason": _stop_reason(blocks),
        "stop_sequence": None,
        "usage": _usage(body, _output_tokens(blocks)),
    }


async def _events(
    body: dict[str, Any], blocks: list[dict[str, Any]], step: Step
) -> AsyncIterator[dict[str, Any]]:
    message = {**_message(body, blocks), "content": [], "stop_reason": None}
    message["usage"] = _usage(body, 1)
    yield {"type": "message_start", "message": message}
    pace = 1.0 / float(step["tokens_per_second"]) if step.get("tokens_per_second") else 0.0
    clock = asyncio.get_running_loop()
    due = clock.time()
    for index, block in enumerate(blocks):
        kind = block["type"]
        if kind == "tool_use":
            yield {"type": "content_block_start", "index": index, "content_block": {**block, "input": {}}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        else:
            empty = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            yield {"type": "content_block_start", "index": index, "content_block": empty}
            for piece in _TOKEN.findall(block[kind]):
                if pace:
                    due += pace
                    await asyncio.sleep(max(0.0, due - clock.time()))
                if step.get("stamped") and kind == "text":
                    piece = f"{time.monotonic_ns()} "
                yield {
                    "type": "content_block_delta",
                    "index": index,
                    "delta": {"type": f"{kind}_delta", kind: piece},
                }
            if kind == "thinking":
                signature = {"type": "signature_delta", "signature": "offline"}
                yield {"type": "content_block_delta", "index": index, "delta": signature}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": _stop_reason(blocks), "stop_sequence": None},
        "usage": _usage(body, _output_tokens(blocks)),
    }
    yield {"type": "message_stop"}
