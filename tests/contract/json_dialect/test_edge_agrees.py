"""The edge's own tables against the contract."""

import re
from pathlib import Path
from typing import Any

import pytest

import deploy.envoy.config as edge
from tests.contract.json_dialect.conftest import public_methods

pytestmark = pytest.mark.contract


def test_every_public_service_has_a_route_and_no_other() -> None:
    documented = {method.containing_service.full_name for method in public_methods().values()}
    assert {name for names in edge.SERVICES.values() for name in names} == documented


def test_paths_that_need_no_token_are_those_the_contract_opens(openapi: dict[str, Any]) -> None:
    opened: set[str] = set()
    for path, verbs in openapi["paths"].items():
        for operation in verbs.values():
            if operation.get("security") == []:
                service, name = operation["operationId"].split("_")
                [method] = [
                    method
                    for method in public_methods().values()
                    if (method.containing_service.name, method.name) == (service, name)
                ]
                opened |= {path, f"/{method.containing_service.full_name}/{name}"}
    pages = {"/health", "/api/v1/openapi.json"}
    assert set(edge.PUBLIC) - pages == opened


def test_reasons_of_the_edge_are_documented(openapi: dict[str, Any]) -> None:
    source = Path(edge.__file__).with_name("errors.lua").read_text("utf-8")
    used = set(re.findall(r'"([A-Z]+_[A-Z_]+|[A-Z]{5,})"', source))
    documented = openapi["tags"][-1]["description"].split("### `aiagent`")[-1]
    assert used
    assert {reason for reason in used if f"| `{reason}` |" not in documented} == set()
