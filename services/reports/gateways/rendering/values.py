"""Values as people read them: amounts, durations, times, in the report's locale and time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.reports.domain.document import Cell, ValueKind

_MINUS: Final = "\N{MINUS SIGN}"
NARROW: Final = "\N{NARROW NO-BREAK SPACE}"
_DEFAULT: Final = (",", ".")
_SEPARATORS: Final = {
    **dict.fromkeys(("de", "nl", "es", "it", "pt", "id", "tr", "da", "el", "ro"), (".", ",")),
    **dict.fromkeys(("fr", "ru", "uk", "pl", "cs", "sk", "sv", "nb", "no", "fi", "hu", "bg"), (NARROW, ",")),
    "de-CH": ("’", "."),
    "de-AT": (NARROW, ","),
    "es-MX": (",", "."),
}
"""Of thousands, and of decimals, where they are not those of English."""
RIGHT: Final = frozenset((ValueKind.NUMBER, ValueKind.MONEY, ValueKind.TOKENS, ValueKind.DURATION))
"""Kinds that stand at the right of their column."""


class Formats:
    """How values of one report are written."""

    def __init__(self, locale: str = "en", time_zone: str = "UTC") -> None:
        """Args:

        locale: BCP 47; one that is not known is written as English is.
        time_zone: IANA name; one that is not known is taken for UTC.
        """
        self._thousands, self._point = _SEPARATORS.get(
            locale, _SEPARATORS.get(locale.partition("-")[0], _DEFAULT)
        )
        self.zone_name = time_zone
        self._zone: tzinfo = UTC
        try:
            self._zone = ZoneInfo(time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.zone_name = "UTC"

    def value(self, value: Cell, kind: ValueKind) -> str:
        """Returns a value of a kind; a dash where there is none, and the value as it is where it is of another kind."""
        if value is None or value == "":
            return "–"
        if isinstance(value, str):
            match kind:
                case ValueKind.TIME:
                    return self._told_time(value)
                case ValueKind.DAY:
                    return value
                case _:
                    return value
        match kind:
            case ValueKind.MONEY:
                return self.money(value)
            case ValueKind.DURATION:
                return self.duration(value)
            case _:
                return self.number(value)

    def number(self, value: float, decimals: int | None = None) -> str:
        """Returns a number; with up to two decimals unless told how many."""
        if decimals is None:
            decimals = 0 if value == int(value) else 2
        return (
            f"{value:,.{decimals}f}".replace(",", "\0")
            .replace(".", self._point)
            .replace("\0", self._thousands)
            .replace("-", _MINUS)
        )

    def money(self, micro_dollars: float) -> str:
        """Returns an amount: in cents, or as exactly as it takes where it is less than one."""
        dollars = micro_dollars / 1_000_000
        decimals = (
            2 if micro_dollars % 10_000 == 0 or abs(dollars) >= 1 else 4 if abs(dollars) >= 0.0001 else 6
        )
        number = self.number(abs(dollars), decimals)
        return f"{_MINUS if dollars < 0 else ''}${number}"

    def short(self, value: float, kind: ValueKind) -> str:
        """Returns a value with little room, as at the axis of a chart."""
        if kind is ValueKind.MONEY:
            dollars = value / 1_000_000
            return f"${self._scaled(dollars)}" if dollars == int(dollars) else self.money(value)
        if kind is ValueKind.DURATION:
            return self.duration(value) if value else "0"
        return self._scaled(value)

    def duration(self, seconds: float) -> str:
        """Returns a length of time in two units at most."""
        if seconds < 0.9995:
            return f"{round(seconds * 1000)}{NARROW}ms"
        if seconds < 59.95:
            tenths = round(seconds, 1)
            return f"{self.number(tenths, 0 if tenths == int(tenths) else 1)}{NARROW}s"
        whole = round(seconds)
        days, rest = divmod(whole, 86400)
        hours, rest = divmod(rest, 3600)
        minutes, left = divmod(rest, 60)
        parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
        while not parts[0][0]:
            parts.pop(0)
        return " ".join(f"{number}{NARROW}{unit}" for number, unit in parts[:2] if number)

    def time(self, moment: datetime) -> str:
        """Returns a moment to the second, in the report's time zone."""
        return f"{moment.astimezone(self._zone):%Y-%m-%d %H:%M:%S}"

    def minute(self, moment: datetime) -> str:
        """Returns a moment to the minute, in the report's time zone."""
        return f"{moment.astimezone(self._zone):%Y-%m-%d %H:%M}"

    def period(self, start: datetime | None, end: datetime | None) -> str:
        """Returns a stretch of time: as days where it is of whole ones, of which the last is told."""
        if start is None and end is None:
            return ""
        if start is not None and end is not None:
            first, last = start.astimezone(self._zone), end.astimezone(self._zone)
            if first.time() == last.time() == datetime.min.time():
                final = date.fromordinal(last.toordinal() - 1)
                return (
                    f"{first:%Y-%m-%d}" if first.date() == final else f"{first:%Y-%m-%d} – {final:%Y-%m-%d}"
                )
        told = [self.minute(moment) if moment else "" for moment in (start, end)]
        if not told[0]:
            return f"until {told[1]}"
        return f"{told[0]} – {told[1]}" if told[1] else f"since {told[0]}"

    def _told_time(self, text: str) -> str:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return text
        return self.time(moment) if moment.tzinfo else text

    def _scaled(self, value: float) -> str:
        if abs(value) >= 1e15:
            return f"{value:.2g}"
        for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                scaled = round(value / size, 2)
                decimals = 0 if scaled == int(scaled) else 1 if scaled * 10 == int(scaled * 10) else 2
                return self.number(scaled, decimals) + unit
        return self.number(round(value, 2))
