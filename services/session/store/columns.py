"""A `Content` is four columns; this is the one place that knows their names."""

from __future__ import annotations

from typing import Any

from services.session.domain.entities import Content


def content_columns(prefix: str, content: Content) -> dict[str, Any]:
    """Returns the values of the four columns, by name."""
    return {
        f"{prefix}_text": content.text,
        f"{prefix}_content_id": content.content_id,
        f"{prefix}_size_bytes": content.size_bytes if content.content_id else None,
        f"{prefix}_sha256": content.sha256 if content.content_id else None,
    }


def content_of(row: Any, prefix: str) -> Content:
    """Reads the four columns of a row."""
    return Content(
        text=getattr(row, f"{prefix}_text") or "",
        content_id=getattr(row, f"{prefix}_content_id"),
        size_bytes=getattr(row, f"{prefix}_size_bytes") or 0,
        sha256=getattr(row, f"{prefix}_sha256") or "",
    )
