"""What the benchmarks share: who called, what processes cost, and figures as JSON, as a table and as a chart."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psutil

from aiagent.auth.v1 import auth_service_pb2, auth_service_pb2_grpc

RESULTS = Path(__file__).parent / "results"
Metadata = tuple[tuple[str, str], ...]
Row = Mapping[str, Any]
_PASSWORD = "correct horse battery"


def open_channel(target: str) -> grpc.aio.Channel:
    """A channel with a connection of its own, as each client on a machine of its own would have."""
    options = [
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.insecure_channel(target, options=options)


async def sign_up(channel: grpc.aio.Channel) -> Metadata:
    """Registers somebody new and returns what their calls carry."""
    auth = auth_service_pb2_grpc.AuthServiceStub(channel)
    email = f"bench{uuid4().hex[:12]}@example.com"
    await auth.Register(
        auth_service_pb2.RegisterRequest(
            email=email, username=email.split("@")[0], password=_PASSWORD, full_name="Bench"
        )
    )
    tokens = await auth.Login(auth_service_pb2.LoginRequest(email=email, password=_PASSWORD))
    return (("authorization", f"Bearer {tokens.access_token}"),)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really seen."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


@dataclass
class CpuMeter:
    """CPU time of groups of processes between `start` and `stop`, in seconds.

    Attributes:
        groups: The processes, by what they are called in the figures.
    """

    groups: Mapping[str, Iterable[psutil.Process]]
    spent: dict[str, float] = field(default_factory=dict)
    _before: dict[str, dict[int, float]] = field(default_factory=dict)

    def _read(self) -> dict[str, dict[int, float]]:
        read: dict[str, dict[int, float]] = {}
        for name, processes in self.groups.items():
            read[name] = {}
            for process in processes:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                read[name][process.pid] = times.user + times.system
        return read

    def start(self) -> None:
        """Notes where every process stands."""
        self._before = self._read()

    def stop(self) -> dict[str, float]:
        """Returns what each group has spent since; a process that has ended meanwhile is left out."""
        after = self._read()
        self.spent = {
            name: sum(time - self._before[name].get(pid, time) for pid, time in times.items())
            for name, times in after.items()
        }
        return self.spent


def machine() -> dict[str, Any]:
    """What a figure must not be read without."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a column for each key of the first one."""
    names = list(rows[0])
    cells = [names, *[[_cell(row.get(name)) for name in names] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


_COLOURS = ("#4c78a8", "#f58518", "#e45756", "#72b7b2")
_LEFT, _WIDTH, _BAR, _GAP = 260, 900, 12, 10


def chart(title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """An SVG of horizontal bars: a group for each row, a bar for each of its series."""
    series = list(rows[0][1])
    most = max(max(values.values()) for _, values in rows) or 1.0
    parts = [f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(title)} ({escape(unit)})</text>']
    for index, name in enumerate(series):
        x = _LEFT + index * 150
        parts.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{_COLOURS[index % 4]}"/>')
        parts.append(f'<text x="{x + 15}" y="39">{escape(name)}</text>')
    y = 52
    for label, values in rows:
        middle = y + len(series) * _BAR / 2 + 4
        parts.append(f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>')
        for index, name in enumerate(series):
            width = max(1.0, values[name] / most * (_WIDTH - _LEFT - 70))
            top = y + index * _BAR
            parts.append(
                f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR - 2}" fill="{_COLOURS[index % 4]}"/>'
            )
            parts.append(f'<text x="{_LEFT + width + 4:.1f}" y="{top + 9}">{_cell(values[name])}</text>')
        y += len(series) * _BAR + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def write_results(directory: Path, name: str, figures: Mapping[str, Any], text: str, svg: str) -> None:
    """Writes `name`.json, .txt and .svg, and prints the table."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (directory / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(text, flush=True)
    print(f"written to {directory}/{name}.json, .txt and .svg", flush=True)
