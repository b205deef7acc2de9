"""The schemas that are taken are those that the CLI takes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest

from services.session.domain.output_schema import find_fault
from tests.unit.session.test_output_schema import GOOD

pytestmark = pytest.mark.contract
CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
REFUSAL = "not a valid JSON Schema"
ALL_GOOD: dict[str, Any] = {
    # References are to the whole; the last one is as deep as may be by itself.
    "properties": {
        f"case {number}": {key: value for key, value in schema.items() if key not in ("$schema", "$ref")}
        for number, schema in enumerate(GOOD[:-1])
    },
    "definitions": {"a": {"$ref": "#"}, "b": {"$ref": "#/definitions/a"}},
    "$schema": "http://json-schema.org/draft-07/schema#",
}


async def answer(schema: dict[str, Any], home: Path) -> str:
    """What the CLI says to a schema; where it takes it, it goes on to a model that is not there."""
    environment = {
        "HOME": str(home),
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    process = await asyncio.create_subprocess_exec(
        *(CLI, "-p", "hello", "--output-format", "json", "--json-schema", json.dumps(schema)),
        env=environment,
        cwd=home,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode(errors="replace")


@pytest.mark.parametrize(
    "schema",
    [
        ALL_GOOD,
        {"type": "nonsense"},
        {"properties": {"a": {"prefixItems": []}}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"properties": {"a": {"$ref": "#/definitions/missing"}}},
    ],
    ids=["good", "type", "keyword", "draft", "reference"],
)
async def test_the_cli_agrees(schema: dict[str, Any], tmp_path: Path) -> None:
    said = await answer(schema, tmp_path)
    assert said
    assert (REFUSAL in said) == (find_fault(schema) is not None), said
