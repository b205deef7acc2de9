# ruff: noqa: E501 - one template a line
"""Templates in processes of their own: what they render to, and what they cannot do."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.templating import build_environment
from services.scheduler.domain.templates import TemplateError, TemplateFault, check_template
from services.scheduler.domain.variables import Variable, VariableType
from services.scheduler.gateways.rendering import RenderLimits, TemplateProcesses

pytestmark = pytest.mark.integration
LIMITS = RenderLimits(cpu_seconds=0.3, memory_bytes=64 * 1024 * 1024, characters=100_000)


@pytest.fixture(scope="module")
async def renderer() -> AsyncIterator[TemplateProcesses]:
    made = TemplateProcesses(size=1, limits=LIMITS)
    yield made
    await made.close()


async def fault(renderer: TemplateProcesses, template: str, **values: Any) -> TemplateError:
    before = time.monotonic()
    with pytest.raises(TemplateError) as raised:
        await renderer.render(template, values)
    assert time.monotonic() - before < LIMITS.wall_seconds
    assert len(str(raised.value)) < 400
    return raised.value


async def test_values_are_put_in(renderer: TemplateProcesses) -> None:
    template = (
        "Dear {{ name|title }},\n{% for item in items %}- {{ item.what }}: {{ item.number }}\n{% endfor %}"
    )
    values: dict[str, Any] = {
        "name": "ada",
        "items": [{"what": "é😀", "number": 3}, {"what": "<b>", "number": 1.5}],
    }
    wanted = "Dear Ada,\n- é😀: 3\n- <b>: 1.5\n"
    # The second time what was compiled the first time is used.
    assert [await renderer.render(template, values) for _ in range(2)] == [wanted, wanted]
    assert await renderer.render(template, values | {"items": []}) == "Dear Ada,\n"


async def test_whatever_has_a_text_is_printed(renderer: TemplateProcesses) -> None:
    template = "{{ x }} {{ none }} {{ true }} {{ 1.5 }} {{ {'a': 1}.items() }} {{ range(2) }} {{ '<'|e }} {{ [1]|groupby(0) }}"
    wanted = "['a'] None True 1.5 dict_items([('a', 1)]) range(0, 2) &lt; [(Undefined, [1])]"
    assert await renderer.render(template, {"x": ["a"]}) == wanted


async def test_a_template_without_tags_renders_as_it_would_with_some(renderer: TemplateProcesses) -> None:
    text = "a }} b\r\nc %} d\re\n\n"
    assert await renderer.render(text, {}) == (await renderer.render("{{ '' }}" + text, {}))
    assert await renderer.names_in(text) == frozenset()


@pytest.mark.parametrize(
    ("template", "wanted", "named"),
    [
        ("{{ ''.__class__ }}", TemplateFault.FORBIDDEN, "__class__"),
        ("{{ ''|attr('__class__') }}", TemplateFault.FORBIDDEN, "__class__"),
        ("{{ cycler.__init__.__globals__ }}", TemplateFault.FORBIDDEN, "__init__"),
        ("{{ '{0.__class__}'.format(x) }}", TemplateFault.FORBIDDEN, "__class__"),
        ("{% set _ = x.append(1) %}{{ x.append }}", TemplateFault.FORBIDDEN, "append"),
        ("a\nb {{ nobody }}", TemplateFault.UNDEFINED, "line 2: 'nobody'"),
        ("{{ y.z }}", TemplateFault.UNDEFINED, "z"),
        ("{% if nobody %}{% endif %}", TemplateFault.UNDEFINED, "nobody"),
        ("a\nb\n{{ 1/0 }}", TemplateFault.FAILED, "line 3: ZeroDivisionError"),
        ("{{ 'a' + 1 }}", TemplateFault.FAILED, "TypeError"),
        # What has no text but an address in memory.
        ("a\n{{ 'a'|map('upper') }}", TemplateFault.FAILED, "line 2: what is printed is no text: a list is meant"),
        ("{{ 'a'.upper }}", TemplateFault.FAILED, "a call is meant"),
        # What takes too much time: only the kernel stops some of these.
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", TemplateFault.TOO_COSTLY, "time"),
        ("{{ 9 ** (9 ** 9) }}", TemplateFault.TOO_COSTLY, "time"),
        # Too deep or too long, whatever is noticed first.
        ("{{" + "+".join(["1"] * 20_000) + "}}", TemplateFault.TOO_COSTLY, "the template"),
        # Too much memory.
        ("{{ 'a' * 10**9 }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ [1] * 10**9 }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ '%1000000000d' % 1 }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ '%1000000000d'|format(1) }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ '{:>1000000000}'.format(1) }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ 'a'|center(10**9) }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ 'a\nb'|indent(10**9) }}", TemplateFault.TOO_COSTLY, "memory"),
        ("{{ range(99999)|join('a' * 99999) }}", TemplateFault.TOO_COSTLY, "takes more"),
        ("{{ x|batch(10**9, 'a')|list }}", TemplateFault.TOO_COSTLY, "takes more"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", TemplateFault.TOO_COSTLY, "takes more"),
        ("{{ range(10**9) }}", TemplateFault.TOO_COSTLY, "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", TemplateFault.TOO_COSTLY, "calls itself"),
        ("{{" + "(" * 9000 + "1" + ")" * 9000 + "}}", TemplateFault.TOO_COSTLY, "too deep"),
        ("{% for a in range(99999) %}aa{% endfor %}", TemplateFault.TOO_LONG, "more characters"),
        ("{{ 'a' * 100001 }}", TemplateFault.TOO_LONG, "more characters"),
        ("{% if %}", TemplateFault.SYNTAX, "line 1"),
        ("{% for a in x %}" * 30 + "{% endfor %}" * 30, TemplateFault.SYNTAX, "nested"),
        ("\n{{ x|random }}", TemplateFault.SYNTAX, "line 2: No filter named 'random'"),
    ],
)  # fmt: skip
async def test_what_a_template_cannot_do(
    renderer: TemplateProcesses, template: str, wanted: TemplateFault, named: str
) -> None:
    found = await fault(renderer, template, x=[1], y={})
    assert (found.fault, named in str(found)) == (wanted, True), str(found)
    # Nothing is left of it.
    assert await renderer.render("{{ x }}", {"x": 1}) == "1"


async def test_what_is_said_of_a_fault_can_be_stored_and_sent(renderer: TemplateProcesses) -> None:
    for name in ("\x00", "\ud800"):
        template = '{{ "x".encode(**{"a' + name.encode("unicode_escape").decode() + '": 1}) }}'
        told = await fault(renderer, template)
        assert "a\ufffd" in told.message
        assert told.message.encode().count(b"\0") == 0


async def test_every_filter_is_there_without_files(renderer: TemplateProcesses) -> None:
    # Some load what they need when they are first used, which a child cannot.
    unexpected = []
    for name in build_environment().filters:
        try:
            await renderer.render("{{ x|" + name + " }}", {"x": "a<b>"})
        except TemplateError as error:
            unexpected += [name] if "OSError" in str(error) or "Import" in str(error) else []
    assert unexpected == []


async def test_the_loop_of_the_service_goes_on_meanwhile(renderer: TemplateProcesses) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    task = asyncio.create_task(fault(renderer, endless))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    await task
    assert turns > 10


async def test_reading_is_bounded_as_rendering_is(renderer: TemplateProcesses) -> None:
    assert await renderer.names_in("{{ a }}{% for b in c %}{{ b }}{{ d.e }}{% endfor %}{{ range(3) }}") == {
        "a",
        "c",
        "d",
    }
    # Constants are worked out while a template is compiled.
    assert await renderer.names_in("{{ a }}{{ 'a' * 10**10 }}") == {"a"}
    with pytest.raises(TemplateError, match="time"):
        await renderer.names_in("{{ 9 ** (9 ** 9) }}")


@pytest.mark.parametrize("tag", ["include 'a'", "import 'a' as b", "from 'a' import b", "extends 'a'"])
async def test_templates_stand_alone(renderer: TemplateProcesses, tag: str) -> None:
    with pytest.raises(TemplateError, match="line 2: a template stands alone"):
        await renderer.names_in("\n{% " + tag + " %}")


async def test_a_template_is_checked_against_what_is_declared(renderer: TemplateProcesses) -> None:
    name = Variable("name", VariableType.STRING, required=True)
    await check_template("Hello {{ name }}", [name], renderer)
    await check_template("Hello", [name], renderer)
    with pytest.raises(ServiceError) as refused:
        await check_template(
            "{{ name }} {{ age }} {{ place }}", [name], renderer, template_path="task.prompt_template"
        )
    assert [(v.field, v.reason, v.description) for v in refused.value.violations] == [
        ("task.prompt_template", "UNDECLARED", "uses age, which is not declared"),
        ("task.prompt_template", "UNDECLARED", "uses place, which is not declared"),
    ]
    for template, reason, named in (
        (" \n", "REQUIRED", "empty"),
        ("{{ name }}\n{% endif %}", "SYNTAX", "line 2: Encountered unknown tag 'endif'"),
        ("{{ 9 ** (9 ** 9) }}", "TOO_COSTLY", "time"),
        ("{{ name }}" * 10_000, "TOO_LONG", "65536"),
        ("a\0b", "SYNTAX", "NUL"),
    ):
        with pytest.raises(ServiceError) as refused:
            await check_template(template, [name], renderer)
        (violation,) = refused.value.violations
        assert violation.reason == reason and named in violation.description
    with pytest.raises(ServiceError) as refused:
        await check_template("{{ a }}", [Variable("self", VariableType.STRING), name, name], renderer)
    assert [(v.field, v.reason) for v in refused.value.violations] == [
        ("variables[0].name", "NAME"),
        ("variables[2].name", "DUPLICATE"),
        ("prompt_template", "UNDECLARED"),
    ]


async def test_nothing_of_the_service_is_there(renderer: TemplateProcesses) -> None:
    os.environ["AIAGENT_SECRET_OF_A_TEST"] = "secret"
    try:
        await renderer.close()
        await renderer.render("{{ 1 }}", {})
        (process,) = renderer._all
        there = Path(f"/proc/{process._process.pid}")
        assert there.joinpath("environ").read_bytes() == b"LC_ALL=C.UTF-8\0"
        assert {int(file.name) for file in there.joinpath("fd").iterdir()} == {0, 1, 2}
    finally:
        del os.environ["AIAGENT_SECRET_OF_A_TEST"]


async def test_a_lost_process_is_started_again() -> None:
    renderer = TemplateProcesses(size=1, limits=LIMITS)
    try:
        assert await renderer.render("{{ 1 }}", {}) == "1"
        (process,) = renderer._all
        os.kill(process._process.pid, signal.SIGKILL)
        await process.ended()
        assert await renderer.render("{{ 2 }}", {}) == "2"
        assert len(renderer._all) == 1
    finally:
        await renderer.close()
    assert renderer._all == set()
    # It may be used again.
    assert await renderer.render("{{ 3 }}", {}) == "3"
    await renderer.close()


async def test_processes_may_be_started_before_they_are_needed() -> None:
    renderer = TemplateProcesses(size=2, limits=LIMITS)
    try:
        await renderer.start()
        started = set(renderer._all)
        assert len(started) == 2
        await renderer.start()
        assert await asyncio.gather(*(renderer.render("{{ x }}", {"x": number}) for number in range(9))) == [
            str(number) for number in range(9)
        ]
        assert renderer._all == started
    finally:
        await renderer.close()


async def test_without_its_program_the_renderer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("services.scheduler.gateways.rendering._PROGRAM", tmp_path / "none.py")
    renderer = TemplateProcesses(size=1)
    with pytest.raises(ServiceError) as raised:
        await renderer.render("{{ 1 }}", {})
    assert (raised.value.kind, raised.value.reason) == (ErrorKind.UNAVAILABLE, "RENDERER_UNAVAILABLE")


async def test_an_answer_that_nobody_waits_for_is_nobody_elses() -> None:
    renderer = TemplateProcesses(size=1, limits=LIMITS)
    try:
        await renderer.render("{{ 1 }}", {})
        task = asyncio.create_task(
            renderer.render(
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {}
            )
        )
        (process,) = renderer._all
        while renderer._places.qsize():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(process.ended(), 20)
        assert await renderer.render("{{ 2 }}", {}) == "2"
    finally:
        await renderer.close()


async def test_the_processes_end_with_the_service(tmp_path: Path) -> None:
    # Whoever holds the other end of its input is gone: it ends by itself.
    program = "services/scheduler/gateways/rendering_process.py"
    limits = {"cpu_seconds": 1, "wall_seconds": 1, "memory_bytes": 10**8, "characters": 10}
    process = await asyncio.create_subprocess_exec(
        *(".venv/bin/python", "-I", program, json.dumps(limits)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0
