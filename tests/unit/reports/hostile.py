# ruff: noqa: E501 - one attack a line
"""A report that tries to be more than one: to run, to fetch, to break out, to be slow."""

from __future__ import annotations

import json
from collections.abc import Iterator

from services.reports.domain.document import (
    Chart,
    ChartKind,
    Column,
    Diff,
    Fact,
    Header,
    Item,
    KeyValues,
    Message,
    Notice,
    ReportKind,
    Role,
    Section,
    Series,
    Table,
    Text,
    TimelineEntry,
    Tone,
    ToolCall,
    ValueKind,
)
from tests.unit.reports.documents import MONEY, NOON, TIME, TOKENS


def hostile(address: str = "127.0.0.1:9") -> Iterator[Item]:
    """A report in which every text tries to be more than text; what is fetched is fetched from an address."""
    attacks = (
        "<script>alert(1)</script>",
        f'<img src="http://{address}/a.png" onerror="alert(1)"><svg onload="alert(1)"><use href="http://{address}/b"/></svg>',
        f'<link rel="stylesheet" href="http://{address}/c.css"><style>@import url(http://{address}/d.css);</style>',
        f"![x](http://{address}/e.png) ![y](file:///etc/passwd) [z](javascript:alert(1)) [d](data:text/html;base64,PHNjcmlwdD4=)",
        '<a href="javascript:alert(1)">x</a> <iframe src="file:///etc/passwd"></iframe> <object data="file:///etc/passwd"></object>',
        "</pre></code></td></style></title></script><h1>out</h1>",
        '" onmouseover="alert(1)" x="',
        "{{ 7 * 7 }} {% for x in ().__class__.__mro__ %}{% endfor %} {# #}",
        "safe\u202etxt.exe \u2066isolate\u2069 nul\x00 bell\x07 lone\ud83d half\udc00 \x1b[31mred\x1b[0m \uffff",
    )
    everything = "\n\n".join(attacks)
    yield Header(
        ReportKind.AUDIT,
        everything,
        everything,
        NOON,
        everything,
        NOON,
        NOON,
        "../../etc",
        '"><script>',
        (Fact(everything, everything),),
    )
    yield Section(everything)
    for number, attack in enumerate(attacks):
        yield Section(attack, 2)
        yield Text(attack)
        yield KeyValues((Fact(attack, attack), Fact(attack, attack, TIME)))
        yield Table(
            (Column(attack), Column(attack, MONEY)), ((attack, attack), (attack, None)), (attack, 1), attack
        )
        yield Chart(
            tuple(ChartKind)[number % 3],
            attack,
            (attack, "b"),
            (Series(attack, (1.0, float("nan"))), Series("b", (-1.0, 1e300))),
            TOKENS,
        )
        yield Message(Role.USER, attack, attack, NOON, (Fact(attack, attack),))
        yield ToolCall(attack, json.dumps({attack: attack}), attack, NOON, 1, attack, attack, attack)
        yield Diff(attack, f"+{attack}\n-{attack}")
        yield TimelineEntry(NOON, attack, attack, Tone.BAD)
        yield Notice(attack, Tone.WARNING)
    for deep in (
        ">" * 5000,
        "- " * 5000,
        "[" * 5000,
        "*a **b " * 5000,
        "".join(f"{'  ' * n}- a\n" for n in range(100)),
        "a|" * 5000 + "\n" + "-|" * 5000,
    ):
        yield Text(deep)
    yield ToolCall("deep", "[" * 100_000)
    yield ToolCall("long", "", "x" * 1_000_000)
    yield Message(Role.ASSISTANT, "long", "y" * 1_000_000)
    yield Table((Column("n", ValueKind.NUMBER),), tuple((n,) for n in range(20_000)))
