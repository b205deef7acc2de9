"""Conventions of the contract that buf's lint does not know."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from protos.openapi.comments import parse
from protos.openapi.contract import Contract
from protos.openapi.operations import bindings

pytestmark = pytest.mark.unit

INTERNAL = {"ExecutorService", "TranscriptService"}
READING = ("Get", "List", "Watch", "Read", "Wait", "Download", "Preview")

# Changes that need no request id, each with its reason.
WITHOUT_REQUEST_ID = {
    "Login": "every login is a new family of tokens",
    "RefreshToken": "the refresh token is the id: used again within its grace it gives the same successor",
    "Logout": "logging out twice is logging out",
}

# What clients of the service before this one call; methods of later services are added with them.
KEPT_PATHS = {
    "POST /api/v1/auth/register",
    "POST /api/v1/auth/login",
    "POST /api/v1/auth/refresh",
    "GET /api/v1/auth/me",
    "POST /api/v1/sessions",
    "GET /api/v1/sessions",
    "GET /api/v1/sessions/{session_id}",
    "DELETE /api/v1/sessions/{session_id}",
    "POST /api/v1/sessions/{session_id}/query",
    "GET /api/v1/sessions/{session_id}/messages",
    "GET /api/v1/sessions/{session_id}/tool-calls",
    "GET /api/v1/sessions/{session_id}/workdir/download",
    "POST /api/v1/tasks",
    "GET /api/v1/tasks",
    "GET /api/v1/tasks/{task_id}",
    "DELETE /api/v1/tasks/{task_id}",
}


def methods(contract: Contract) -> Iterator[MethodDescriptor]:
    for service in contract.services():
        yield from service.methods


def public_methods(contract: Contract) -> Iterator[MethodDescriptor]:
    return (method for method in methods(contract) if method.containing_service.name not in INTERNAL)


def rule(contract: Contract, method: MethodDescriptor) -> Mapping[str, Any]:
    return contract.options(method).get("google.api.http", {})


def test_everything_has_a_comment(contract: Contract) -> None:
    described = [
        *contract.services(),
        *methods(contract),
        *contract.messages(),
        *(field for message in contract.messages() for field in message.fields),
        *contract.enums(),
        *(value for enum in contract.enums() for value in enum.values),
    ]
    assert len(described) > 300
    assert [
        item.full_name for item in described if not contract.comment(item) and hasattr(item, "full_name")
    ] == []


def test_every_reason_shows_an_example_that_names_it(contract: Contract) -> None:
    reasons = [enum for enum in contract.enums() if enum.full_name.endswith(".ErrorReason.Reason")]
    assert len(reasons) >= 3
    missing = [
        f"{enum.full_name}.{value.name}"
        for enum in reasons
        for value in enum.values
        if value.number and f'Example: {{"reason": "{value.name}"' not in contract.comment(value)
    ]
    assert missing == []


def test_reasons_named_in_comments_exist(contract: Contract) -> None:
    known = {
        enum.file.package: {value.name for value in enum.values}
        for enum in contract.enums()
        if enum.full_name.endswith(".ErrorReason.Reason")
    }
    unknown = [
        f"{method.full_name}: {reason}"
        for method in methods(contract)
        for _, reason in parse(contract.comment(method)).errors
        if reason and reason not in known[method.containing_service.file.package]
    ]
    assert unknown == []


def test_every_change_takes_a_request_id(contract: Contract) -> None:
    missing = [
        method.full_name
        for method in public_methods(contract)
        if not method.name.startswith(READING)
        and method.name not in WITHOUT_REQUEST_ID
        and "request_id" not in method.input_type.fields_by_name
    ]
    assert missing == []


def test_every_internal_call_about_an_attempt_is_fenced(contract: Contract) -> None:
    unfenced = [
        method.full_name
        for method in methods(contract)
        if method.containing_service.name in INTERNAL
        and not method.name.startswith("Get")
        and not {"fence", "lease_epoch"} & set(method.input_type.fields_by_name)
    ]
    assert unfenced == []


def test_every_list_pages(contract: Contract) -> None:
    lists = [method for method in public_methods(contract) if method.name.startswith("List")]
    assert len(lists) >= 5
    for method in lists:
        request, response = method.input_type, method.output_type
        assert {"page_size", "page_token"} <= set(request.fields_by_name), method.full_name
        assert "next_page_token" in response.fields_by_name, method.full_name
        assert [field.is_repeated for field in response.fields].count(True) == 1, method.full_name


def test_every_update_names_its_fields_and_its_version(contract: Contract) -> None:
    for method in public_methods(contract):
        if method.name.startswith("Update"):
            assert {"update_mask", "etag"} <= set(method.input_type.fields_by_name), method.full_name


def test_every_public_method_has_a_path_and_no_internal_one_has(contract: Contract) -> None:
    for method in methods(contract):
        internal = method.containing_service.name in INTERNAL
        assert bool(rule(contract, method)) is not internal, method.full_name


def test_every_reading_method_is_a_get(contract: Contract) -> None:
    for method in public_methods(contract):
        verbs = {binding.verb for binding in bindings(rule(contract, method))}
        assert (verbs == {"get"}) is method.name.startswith(READING), method.full_name


def test_paths_of_the_service_before_this_one_are_kept(contract: Contract) -> None:
    found = {
        f"{binding.verb.upper()} {binding.path}"
        for method in public_methods(contract)
        for binding in bindings(rule(contract, method))
    }
    assert KEPT_PATHS - found == set()


BOUNDS = {"len", "max_len", "max_bytes", "len_bytes", "in", "const", "uuid", "email", "ip", "hostname"}


def texts(contract: Contract, message: Descriptor, seen: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields name and rules of every text in a request and in all our messages in it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        rules = contract.options(field).get("buf.validate.field", {})
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            for part in inner.fields:
                if part.type == FieldDescriptor.TYPE_STRING:
                    yield f"{field.full_name} {part.name}s", rules.get("map", {}).get(f"{part.name}s", {})
                elif part.message_type is not None:
                    yield from texts(contract, part.message_type, seen)
        elif inner is not None and inner.full_name.startswith("aiagent."):
            yield from texts(contract, inner, seen)
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield field.full_name, rules.get("repeated", {}).get("items", {}) if field.is_repeated else rules


def is_bounded(rules: Mapping[str, Any]) -> bool:
    """Returns whether a text has a greatest length; an anchored pattern gives one if it repeats finitely."""
    text = rules.get("string", {})
    pattern = re.sub(r"\[[^\]]*\]|\\.", "x", text.get("pattern", ""))
    bounded = pattern.startswith("^") and "$" in pattern and not re.search(r"[*+]|,\}", pattern)
    return bool(BOUNDS & text.keys()) or bounded


def test_no_text_from_outside_is_without_a_limit(contract: Contract) -> None:
    seen: set[str] = set()
    found = [item for method in public_methods(contract) for item in texts(contract, method.input_type, seen)]
    assert len(found) > 30
    assert [name for name, rules in found if not is_bounded(rules)] == []


# Decoded, hashed or compared; never stored as they came.
OPAQUE = (".page_token", ".refresh_token", ".etag")


def refuses_nul(rules: Mapping[str, Any]) -> bool:
    """Returns whether a text with U+0000 is refused: PostgreSQL takes it neither as text nor as JSON."""
    text = rules.get("string", {})
    if text.get("not_contains") == "\0" or {"uuid", "email", "uri", "in", "const"} & text.keys():
        return True
    return "pattern" in text and not any(
        re.search(text["pattern"], sample) for sample in ("\0", "a\0", "a\0a")
    )


def test_no_text_from_outside_may_hold_nul(contract: Contract) -> None:
    seen: set[str] = set()
    found = [item for method in public_methods(contract) for item in texts(contract, method.input_type, seen)]
    stored = [item for item in found if not item[0].endswith(OPAQUE)]
    assert [name for name, rules in stored if not refuses_nul(rules)] == []


def test_no_list_from_outside_is_without_a_limit(contract: Contract) -> None:
    requests = {method.input_type.full_name for method in public_methods(contract)}
    options = {"AgentOptions", "AgentDefinition", "McpServerConfig", "Stdio", "Remote"}
    unlimited = [
        field.full_name
        for message in contract.messages()
        if message.full_name in requests or message.name in options
        for field in message.fields
        if field.is_repeated
        and not {"max_items", "max_pairs"}
        & {key for rule in contract.options(field).get("buf.validate.field", {}).values() for key in rule}
    ]
    assert unlimited == []
