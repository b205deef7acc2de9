"""Lists on narrow terminals: what may be short gives way, states and numbers never do."""

from __future__ import annotations

import pytest

from aiagent_client.cli.tables import Column, fitted

pytestmark = pytest.mark.unit
ONE, OTHER = "01a221ba-52ab-7000-8000-00000000000a", "01a221ba-9999-7000-8000-00000000000b"
COLUMNS = [
    Column("ID", "id"),
    Column("NAME", "text"),
    Column("STATE"),
    Column("TRIES", right=True),
    Column("NEXT", spare=1),
    Column("RUN", "id", spare=2),
]
ROWS = [
    (ONE, "the name of a schedule, in words", "possibly run", "1,234", "2026-11-28 10:00", ONE),
    (OTHER, "short", "failed", "1", "", OTHER),
]


@pytest.mark.parametrize("width", [40, 52, 60, 80, 100, 130, 160])
def test_states_and_numbers_are_whole_at_any_width(width: int) -> None:
    heading, rule, first, second = (line.plain for line in fitted(COLUMNS, ROWS, width).split("\n"))
    for line in (heading, rule, first, second):
        # ID, NAME, STATE and TRIES take 51 at least.
        assert len(line) <= max(width, 51)
    assert "possibly run" in first
    assert "1,234" in first
    assert first[heading.index("TRIES") :].startswith("1,234")
    assert second[heading.index("TRIES") :].startswith("    1")
    assert ("NEXT" in heading, "RUN" in heading) == (width > 69, width > 84)
    assert (ONE in first, first.count(ONE) == 2, ROWS[0][1] in first) == (
        width >= 130,
        width == 160,
        width > 104,
    )


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ([ONE, OTHER, ""], [ONE[:13], OTHER[:13], ""]),
        ([ONE, ONE], [ONE[:13]] * 2),
        # Made at once, as the runs of a backfill are.
        ([ONE, ONE[:-1] + "b"], ["00000000000a", "00000000000b"]),
        ([ONE, ONE.replace("7000", "7001")], [ONE, ONE.replace("7000", "7001")]),
    ],
)
def test_parts_of_ids_tell_them_apart(ids: list[str], shown: list[str]) -> None:
    lines = fitted([Column("ID", "id")], [(key,) for key in ids], 20).plain.split("\n")
    assert lines[2:] == shown


def test_wide_characters_are_counted_as_they_are_shown() -> None:
    heading, _, row = fitted(
        [Column("NAME", "text"), Column("STATE")], [("\u6f22" * 30, "failed")], 30
    ).split("\n")
    assert row.cell_len <= 30
    assert row.plain.endswith("failed")
    assert row[: len(row) - len("failed")].cell_len == heading.plain.index("STATE")
