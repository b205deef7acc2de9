# ruff: noqa: E501 - one case a line
"""Documents as files: what is written is read again, and JSON is as its schema says."""

import io
import json
from pathlib import Path

import jsonschema
import pytest

from services.reports.domain.document import Column, Header, ReportKind, Section, Table, Text
from services.reports.domain.document_lines import (
    DocumentError,
    read_items,
    read_line,
    schema,
    write_line,
)
from services.reports.gateways.rendering.as_json import as_json
from tests.unit.reports import documents, hostile

pytestmark = pytest.mark.unit
SCHEMA = Path(__file__).parents[3] / "docs" / "report.schema.json"
HEADER = Header(ReportKind.USAGE, "t", "s", documents.NOON, "me")


@pytest.mark.parametrize("make", [documents.session, documents.task_run, documents.usage, documents.audit])
def test_what_is_written_is_read_again(make) -> None:
    written = list(make())
    assert list(read_items(io.BytesIO(b"".join(map(write_line, written))))) == written


@pytest.mark.parametrize("text", ["nul\x00", "lone \ud83d", "\udc00half"])
def test_what_no_other_reader_knows_is_replaced(text: str) -> None:
    for line in (write_line(Text(text)), json.dumps({"type": "text", "markdown": text}).encode()):
        read = read_line(line)
        assert isinstance(read, Text)
        read.markdown.encode()
    assert b"\\u0000" not in write_line(Text(text))
    assert "�" in json.loads(write_line(Text(text)))["markdown"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([b"{}"], "no item"),
        ([b"not json"], "no item"),
        ([b"[" * 100_000], "no item"),
        ([], "empty"),
        ([write_line(Section("x"))], "expected a header"),
        ([write_line(HEADER), write_line(Text("x"))], "expected a section"),
        ([write_line(HEADER), write_line(HEADER)], "found a header"),
        ([write_line(HEADER), write_line(Section("x")), write_line(Table((Column("a"),), ((1, 2),)))], "row of a table"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(lines: list[bytes], told: str) -> None:
    with pytest.raises(DocumentError, match=told):
        list(read_items(io.BytesIO(b"\n".join(line.rstrip() for line in lines))))


def test_the_published_schema_is_that_of_the_model() -> None:
    assert json.loads(SCHEMA.read_text()) == schema()


@pytest.mark.parametrize("kind", ["session", "task_run", "usage", "audit", "hostile"])
def test_json_is_as_its_schema_says(kind: str, tmp_path: Path) -> None:
    document = documents.write(
        getattr(hostile if kind == "hostile" else documents, kind)(), tmp_path / "document"
    )
    report = json.loads("".join(as_json(document)))
    jsonschema.Draft202012Validator(schema(), format_checker=jsonschema.FormatChecker()).validate(report)
    items = list(read_items(document.open("rb")))
    assert sum(len(section["blocks"]) + 1 for section in report["sections"]) == len(items) - 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report | {"kind": "other"}, schema())
