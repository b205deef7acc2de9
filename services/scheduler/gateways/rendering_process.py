"""The program that reads and renders templates: one process, and a child of it for each request.

It is started by `rendering`, as a script, and knows nothing of the service: no settings, no environment, no connection.
A request comes on standard input as the template and JSON, an answer leaves on standard output as JSON, and before each
of them stands its length in four bytes:

    {"do": "names" | "render", "values": {...}}
    {"result": ...} or {"fault": ..., "message": ..., "line": ...}

Each request is served by a fork that has bounds of its own in processor time, time, memory and files, and ends with its
answer. What the sandbox cannot stop (a loop without end, a text of a gigabyte, a power of powers worked out while the
template is compiled) the kernel does; and nothing of one template is there when the next one comes. Only what a child
has compiled is kept, as bytes that are never looked into but by children that render the same template.
"""

from __future__ import annotations

import gc
import html  # noqa: F401  some filters load it, and a child opens no files
import json
import marshal
import os
import resource
import signal
import sys
import textwrap  # noqa: F401  as above
from collections import OrderedDict
from typing import Any, BinaryIO

import jinja2.debug  # noqa: F401  as above
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.kernel.templating import build_environment, fault_of, names_in, render

MAX_COMPILED = 256
"""How many compiled templates are kept."""
MAX_COMPILED_BYTES = 64 * 1024
"""Larger ones are not."""
_TIME_IS_UP = (signal.SIGPROF, signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL)
_OUT_OF_TIME = b'{"fault": "TOO_COSTLY", "message": "the template takes more time than it is given"}'
_OUT_OF_MEMORY = b'{"fault": "TOO_COSTLY", "message": "the template takes more memory than it is given"}'


def serve(requests: BinaryIO, answers: BinaryIO, limits: dict[str, Any]) -> None:
    """Answers requests until there are no more.

    Args:
        requests: where they come from.
        answers: where answers go.
        limits: `cpu_seconds`, `wall_seconds`, `memory_bytes` and `characters`, for each of them.
    """
    environment = build_environment()
    # What a first template needs is loaded before a child is denied files.
    render(environment, environment.compile("{{ {'a': x}|tojson|urlize|pprint }}"), {"x": 1}, 1000)
    compiled: OrderedDict[bytes, bytes] = OrderedDict()
    memory = _size_of_this_process() + limits["memory_bytes"]
    gc.disable()
    gc.freeze()
    while len(length := requests.read(4)) == 4:
        template = requests.read(int.from_bytes(length))
        request = requests.read(int.from_bytes(requests.read(4)))
        answer, code = _in_a_child(
            environment, template, request, compiled.pop(template, b""), limits, memory
        )
        if 0 < len(code) <= MAX_COMPILED_BYTES and len(template) <= MAX_COMPILED_BYTES:
            compiled[template] = code
            if len(compiled) > MAX_COMPILED:
                compiled.popitem(last=False)
        answers.write(len(answer).to_bytes(4) + answer)
        answers.flush()


def _in_a_child(
    environment: ImmutableSandboxedEnvironment,
    template: bytes,
    request: bytes,
    code: bytes,
    limits: dict[str, Any],
    memory: int,
) -> tuple[bytes, bytes]:
    """Returns the answer, and the compiled template if there is one."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(source)
            for descriptor in (0, 1, 2):
                os.close(descriptor)
            _bound(limits, memory)
            answer, code = _answer(environment, template.decode(), request, code, limits["characters"])
            _write(sink, len(answer).to_bytes(4) + answer + code)
        finally:
            # Whatever happened: nothing of the parent's is to be run or flushed here.
            os._exit(0)
    os.close(sink)
    with open(source, "rb") as file:  # noqa: PTH123  a pipe
        written = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in _TIME_IS_UP:
        return _OUT_OF_TIME, code
    if os.WIFSIGNALED(status) or not written:
        # It had no memory left to tell, or no stack.
        return _OUT_OF_MEMORY, code
    end = 4 + int.from_bytes(written[:4])
    return written[4:end], written[end:]


def _bound(limits: dict[str, Any], memory: int) -> None:
    seconds = max(1, round(limits["cpu_seconds"] + 0.5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # Their signals are not handled, so they end the process, in whatever loop of C it is.
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
    signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"])


def _answer(
    environment: ImmutableSandboxedEnvironment, template: str, request: bytes, code: bytes, characters: int
) -> tuple[bytes, bytes]:
    try:
        asked = json.loads(request)
        if asked["do"] == "names":
            result: Any = names_in(environment, template)
        else:
            # What was compiled comes from a child that read this very template.
            compiled = marshal.loads(code) if code else environment.compile(template)  # noqa: S302
            code = code or marshal.dumps(compiled)
            result = render(environment, compiled, asked["values"], characters)
        return json.dumps({"result": result}).encode(), code
    except MemoryError:
        return _OUT_OF_MEMORY, code
    except Exception as error:
        return json.dumps(fault_of(error)).encode(), code


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _size_of_this_process() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  no reason to load pathlib
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    # Told to stop by its input's end alone: a Ctrl-C in the terminal is the service's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer, json.loads(sys.argv[1]))
