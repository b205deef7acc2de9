# ruff: noqa: E501, RUF001 - one row a line, and the scripts of the world
"""Reports of all kinds, made up: what tests, the benchmark and eyes look at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
from services.reports.domain.document_lines import write_line

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
MONEY, TOKENS, TIME, DURATION = ValueKind.MONEY, ValueKind.TOKENS, ValueKind.TIME, ValueKind.DURATION
_DIFF = """--- a/src/billing/invoice.py
+++ b/src/billing/invoice.py
@@ -12,9 +12,12 @@ class Invoice:
     def total(self) -> Decimal:
-        return sum(line.amount for line in self.lines)
+        # An invoice without lines comes to nothing, not to the integer 0.
+        return sum((line.amount for line in self.lines), Decimal(0))

     def due(self, today: date) -> bool:
-        return self.paid_at == None and today > self.due_at
+        return self.paid_at is None and today > self.due_at
"""
_ANSWER = """I found the cause: `Invoice.total` starts its sum at the integer `0`, so an invoice **without lines** has no
`Decimal` to quantize. I will:

1. start the sum at `Decimal(0)`,
2. compare with `is None`,
3. add a test for both.

```python
def total(self) -> Decimal:
    \"\"\"The sum of all lines.\"\"\"
    return sum((line.amount for line in self.lines), Decimal(0))
```

| Case | Before | After |
| --- | --- | ---: |
| no lines | `0` | `0.00` |
| two lines | `12.50` | `12.50` |

> The rounding itself is right; see [the guide](https://docs.example.com/rounding).
"""
_WORLD = """顧客の請求書を確認しました。合計は正しいです。 中文：发票已核对。한국어: 청구서를 확인했습니다. 🎉✅🚀

مرحبا بالعالم · שלום עולם · नमस्ते दुनिया · สวัสดีชาวโลก · Привет, мир · Γειά σου Κόσμε · Zażółć gęślą jaźń"""


def write(document: Iterable[Item], path: Path) -> Path:
    """Writes a document into a file and returns that."""
    with path.open("wb") as file:
        for item in document:
            file.write(write_line(item))
    return path


def session(turns: int = 100) -> Iterator[Item]:
    """A session in which an agent mends a program, turn by turn."""
    yield Header(
        ReportKind.SESSION,
        "Fix rounding of invoices without lines",
        "Session billing-service / 0198c2f4-7b1e",
        NOON + timedelta(hours=3),
        "Maria Fernández",
        NOON,
        NOON + timedelta(hours=2, minutes=41),
        "Europe/Madrid",
        facts=(
            Fact("Turns", turns, ValueKind.NUMBER),
            Fact("Tool calls", 2 * turns, ValueKind.NUMBER),
            Fact("Cost", 41_237 * turns, MONEY),
            Fact("Duration", 9660, DURATION),
            Fact("Input tokens", 18_423 * turns, TOKENS),
            Fact("Output tokens", 1_201 * turns, TOKENS),
            Fact("Model", "claude-sonnet-4-5"),
            Fact("Outcome", "Completed"),
        ),
    )
    yield Section("Summary")
    yield Text(
        "The agent found why an invoice without lines is refused, mended it, and added tests. "
        "**Two calls were denied** by the policy of the organization; nothing outside the workspace was changed."
    )
    yield Notice("One tool call failed and was repeated by the agent.", Tone.WARNING)
    yield Section("Cost by turn")
    yield Chart(
        ChartKind.LINE,
        "Tokens by turn",
        tuple(str(turn) for turn in range(1, turns + 1)),
        (
            Series("Input tokens", tuple(18_000 + 900.0 * (turn % 13) for turn in range(turns))),
            Series("Output tokens", tuple(900 + 370.0 * (turn % 7) for turn in range(turns))),
        ),
        TOKENS,
    )
    yield Section("Timeline")
    for turn in range(min(turns, 12)):
        yield TimelineEntry(
            NOON + timedelta(minutes=turn), f"Turn {turn + 1} began", "Asked by Maria Fernández"
        )
        if turn % 5 == 3:
            yield TimelineEntry(
                NOON + timedelta(minutes=turn, seconds=20),
                "Bash was denied",
                "rm -rf build: rule deny-rm",
                Tone.BAD,
            )
    yield Section("Conversation")
    for turn in range(turns):
        yield from _turn(turn)
    yield Section("Files changed")
    yield Diff("src/billing/invoice.py", _DIFF)
    yield Diff(
        "tests/test_invoice.py",
        "@@ -0,0 +1,90 @@\n" + "".join(f"+    assert total({n}) == {n}\n" for n in range(90)),
    )


def _turn(turn: int) -> Iterator[Item]:
    at = NOON + timedelta(seconds=97 * turn)
    yield Section(f"Turn {turn + 1}", 2)
    yield Message(
        Role.USER,
        "Maria Fernández",
        "Invoices without lines are refused with `TypeError`. Please find out why, and mend it."
        if turn % 4
        else _WORLD,
        at,
    )
    yield ToolCall(
        "Read",
        json.dumps({"file_path": "/workspace/src/billing/invoice.py", "limit": 60}),
        "\n".join(
            f"{n:>4}  def method_{n}(self) -> Decimal: return self.lines[{n}].amount"
            for n in range(1, 61 if turn % 3 == 0 else 9)
        ),
        at + timedelta(seconds=4),
        0.013,
        "allowed",
        "rule read-workspace",
    )
    if turn % 5 == 3:
        yield ToolCall(
            "Bash",
            json.dumps({"command": "rm -rf build", "description": "Remove build output"}),
            at=at + timedelta(seconds=7),
            decision="denied",
            decided_by="rule deny-rm",
            error="Permission to use Bash with command rm -rf build has been denied.",
        )
    else:
        yield ToolCall(
            "Bash",
            json.dumps({"command": "pytest -q tests/test_invoice.py 2>&1 | tail -20", "timeout": 60000}),
            "\x1b[32m....................\x1b[0m [100%]\n20 passed in 0.31s",
            at + timedelta(seconds=8),
            2.31,
            "allowed",
            "Maria Fernández",
        )
    yield Message(
        Role.ASSISTANT,
        "claude-sonnet-4-5",
        _ANSWER
        if turn % 2 == 0
        else "The tests pass. The change is small: one line in `invoice.py`, and a test beside it.",
        at + timedelta(seconds=41),
        (
            Fact("Input", 18_423, TOKENS),
            Fact("Output", 1_201, TOKENS),
            Fact("Cost", 41_237, MONEY),
            Fact("Time", 41.2, DURATION),
        ),
    )


def task_run() -> Iterator[Item]:
    """A run of a task that failed once."""
    yield Header(
        ReportKind.TASK_RUN,
        "Nightly dependency check",
        "Run 214 of task nightly-dependencies",
        NOON,
        "scheduler",
        NOON - timedelta(minutes=12),
        NOON,
        "America/New_York",
        facts=(
            Fact("State", "Succeeded"),
            Fact("Attempts", 2, ValueKind.NUMBER),
            Fact("Cost", 312_400, MONEY),
            Fact("Duration", 723.4, DURATION),
        ),
    )
    yield Section("Run")
    yield KeyValues(
        (
            Fact("Task", "nightly-dependencies"),
            Fact("Schedule", "Weekdays at 02:00 (Europe/Berlin)"),
            Fact("Due", (NOON - timedelta(minutes=12)).isoformat(), TIME),
            Fact(
                "Prompt",
                "Check the dependencies of billing-service for known weaknesses, and open a change for each.",
            ),
            Fact("Session", "0198c2f4-7b1e-7c11-9d7b-6f0f3a0a2b11"),
            Fact("Webhook", "https://hooks.example.com/agents"),
        )
    )
    yield Section("Attempts")
    yield Table(
        (
            Column("Attempt", ValueKind.NUMBER),
            Column("Began", TIME),
            Column("Took", DURATION),
            Column("Cost", MONEY),
            Column("Outcome"),
        ),
        (
            (
                1,
                (NOON - timedelta(minutes=12)).isoformat(),
                61.3,
                20_100,
                "Failed: the model was overloaded (529)",
            ),
            (2, (NOON - timedelta(minutes=10)).isoformat(), 541.9, 292_300, "Succeeded"),
        ),
        (None, None, 603.2, 312_400, None),
    )
    yield Section("Result")
    yield Message(Role.ASSISTANT, "claude-sonnet-4-5", _ANSWER, NOON - timedelta(minutes=1))
    yield Diff("src/billing/invoice.py", _DIFF)


def usage(days: int = 30) -> Iterator[Item]:
    """What an organization used in a month."""
    names = [f"{(NOON + timedelta(days=day)).date()}" for day in range(days)]
    models = ("claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5")
    costs = [
        tuple(
            float(1_000_000 * (12 - 4 * place) * (1 + (day * (place + 3)) % 7) * (0.2 if day % 7 > 4 else 1))
            for day in range(days)
        )
        for place in range(len(models))
    ]
    total = int(sum(map(sum, costs)))
    yield Header(
        ReportKind.USAGE,
        "Usage and cost, November 2026",
        "Fernández Software S.L.",
        NOON + timedelta(days=days),
        "Maria Fernández",
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
        facts=(
            Fact("Cost", total, MONEY),
            Fact("Budget", 2_500_000_000, MONEY),
            Fact("Tokens", 481_230_114, TOKENS),
            Fact("Sessions", 1_204, ValueKind.NUMBER),
        ),
    )
    yield Section("Cost by day")
    yield Chart(
        ChartKind.STACKED_BAR,
        "Cost by day and model",
        tuple(names),
        tuple(Series(model, values) for model, values in zip(models, costs, strict=True)),
        MONEY,
    )
    yield Chart(
        ChartKind.LINE,
        "Tokens by day",
        tuple(names),
        (
            Series("Input", tuple(9_000_000.0 + 700_000 * (day % 9) for day in range(days))),
            Series("Cached input", tuple(4_000_000.0 + 500_000 * (day % 5) for day in range(days))),
            Series("Output", tuple(1_200_000.0 + 90_000 * (day % 4) for day in range(days))),
        ),
        TOKENS,
    )
    yield Table(
        (Column("Day", ValueKind.DAY), Column("Sessions", ValueKind.NUMBER), Column("Input", TOKENS), Column("Output", TOKENS), Column("Cost", MONEY)),
        tuple((name, 30 + day % 11, 9_000_000 + 700_000 * (day % 9), 1_200_000 + 90_000 * (day % 4), int(sum(one[day] for one in costs))) for day, name in enumerate(names)),
        ("Total", sum(30 + day % 11 for day in range(days)), sum(9_000_000 + 700_000 * (day % 9) for day in range(days)), sum(1_200_000 + 90_000 * (day % 4) for day in range(days)), total),
    )  # fmt: skip
    users = (
        "Maria Fernández",
        "Jonas Åkesson",
        "李雷",
        "Oluwaseun Adeyemi-Balogun",
        "scheduler",
        "Zoë Müller",
    )
    yield Section("Cost by user")
    shares = tuple(float(total // (2 + place * place)) for place in range(len(users)))
    yield Chart(ChartKind.BAR, "Cost by user", users, (Series("Cost", shares),), MONEY)
    yield Table(
        (Column("User"), Column("Sessions", ValueKind.NUMBER), Column("Tokens", TOKENS), Column("Time", DURATION), Column("Cost", MONEY)),
        tuple((user, 300 // (place + 1), 91_000_000 // (place + 1), 86_400.0 / (place + 1), int(share)) for place, (user, share) in enumerate(zip(users, shares, strict=True))),
    )  # fmt: skip
    yield Section("Cost by task")
    yield Table(
        (Column("Task"), Column("Description"), Column("Runs", ValueKind.NUMBER), Column("Cost", MONEY)),
        tuple(
            (f"nightly-{name}", "Looks through what changed since the day before and reports what a person should see.", 30, 7_123_400 * (place + 1))
            for place, name in enumerate(("dependencies", "licences", "flaky-tests", "changelog"))
        ),
    )  # fmt: skip
    yield Section("Budgets")
    yield Table(
        (Column("Budget"), Column("Limit", MONEY), Column("Spent", MONEY), Column("Left", MONEY)),
        (
            ("Organization, a month", 2_500_000_000, total, 2_500_000_000 - total),
            ("nightly-dependencies, a run", 500_000, 312_400, 187_600),
        ),
    )
    yield Notice("The budget of the organization was not reached.", Tone.GOOD)


def audit(entries: int = 90) -> Iterator[Item]:
    """What was decided in an organization."""
    yield Header(
        ReportKind.AUDIT,
        "Audit, week 48 of 2026",
        "Fernández Software S.L.",
        NOON,
        "auditor@example.com",
        datetime(2026, 11, 22, 23, tzinfo=UTC),
        datetime(2026, 11, 29, 23, tzinfo=UTC),
        "Europe/Berlin",
        "de",
        (
            Fact("Decisions", 12_418, ValueKind.NUMBER),
            Fact("Denied", 37, ValueKind.NUMBER),
            Fact("Log-ins refused", 4, ValueKind.NUMBER),
            Fact("Chain", "Verified"),
        ),
    )
    yield Section("Verification")
    yield Notice(
        "All 12.418 entries of the chain were verified; none is missing and none was changed.", Tone.GOOD
    )
    yield KeyValues(
        (
            Fact("First entry", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
            Fact("Last entry", "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"),
        )
    )
    yield Section("Decisions")
    verdicts = ("allowed", "allowed", "denied")
    yield Table(
        (Column("Time", TIME), Column("Who"), Column("What"), Column("Decision"), Column("By")),
        tuple(
            (
                (NOON + timedelta(minutes=17 * entry)).isoformat(),
                ("Maria Fernández", "scheduler", "Jonas Åkesson")[entry % 3],
                (
                    "Bash: npm publish --access public",
                    "Write: /workspace/README.md",
                    "WebFetch: https://example.com/a/rather/long/path",
                )[entry % 3],
                verdicts[entry % 3],
                "rule default" if entry % 3 else "policy organization-wide",
            )
            for entry in range(entries)
        ),
    )
    yield Section("Security")
    for entry in range(6):
        yield TimelineEntry(
            NOON + timedelta(hours=entry),
            ("Log-in refused", "API key made", "Key of the service rotated")[entry % 3],
            "for maria@example.com from 203.0.113.7: wrong password" if entry % 3 == 0 else "",
            (Tone.WARNING, Tone.NEUTRAL, Tone.GOOD)[entry % 3],
        )
