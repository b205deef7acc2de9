"""Which of two copies of a conversation is ahead, and what its entries are called."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from services.executor.domain.transcripts import Entry, Namer, missing_from_store

pytestmark = pytest.mark.unit


def transcript(*names: str) -> list[Entry]:
    """Entries by short names; those that begin with a dash have no UUID of their own."""
    return [
        Entry(name, not name.startswith("-"), "last-prompt" if name.startswith("-") else "user", "{}")
        for name in names
    ]


def ids(missing: dict[str, list[Entry]] | None) -> dict[str, list[str]] | None:
    if missing is None:
        return None
    return {subpath: [entry.id for entry in entries] for subpath, entries in missing.items()}


@pytest.mark.parametrize(
    ("stored", "local", "missing"),
    [
        ({}, {}, {}),
        ({"": "ab"}, {"": "ab"}, {}),
        ({"": "ab"}, {"": "abcd"}, {"": ["c", "d"]}),
        ({}, {"": "ab"}, {"": ["a", "b"]}),
        ({"": "abc"}, {"": "ab"}, None),
        ({"": "abx"}, {"": "abcd"}, None),
        ({"": "ba"}, {"": "ab"}, None),
        ({"": "ab"}, {}, None),
        ({"": "ab", "s": "k"}, {"": "abc", "s": "kl"}, {"": ["c"], "s": ["l"]}),
        ({"": "ab"}, {"": "ab", "s": "k"}, {"s": ["k"]}),
        ({"": "ab", "s": "kl"}, {"": "abc", "s": "k"}, None),
        ({"": "ab", "s": "k"}, {"": "abc"}, None),
    ],
)
def test_the_stores_copy_must_be_the_beginning_of_the_local_one(stored, local, missing):
    def made(copies: dict[str, str]) -> dict[str, list[Entry]]:
        return {subpath: transcript(*names) for subpath, names in copies.items()}

    assert ids(missing_from_store(made(stored), made(local))) == missing


def test_entries_without_a_uuid_of_their_own_decide_nothing_and_are_sent():
    stored = {"": transcript("a", "-1", "b", "-elsewhere")}
    local = {"": transcript("a", "b", "-2", "-1", "c")}
    assert ids(missing_from_store(stored, local)) == {"": ["-2", "c"]}


def test_what_the_cli_keeps_to_itself_is_not_sent():
    local = {"": [*transcript("a"), Entry("-x", False, "api-request", "{}")]}
    assert ids(missing_from_store({}, local)) == {"": ["a"]}


def test_a_uuid_that_is_repeated_counts_once():
    assert ids(missing_from_store({"": transcript("a", "b")}, {"": transcript("a", "a", "b", "c")})) == {
        "": ["c"]
    }


def test_an_entry_has_its_own_uuid_or_a_name_of_content_and_occurrence():
    own = str(uuid4())
    contents = [
        {"type": "user", "uuid": own},
        {"type": "mode"},
        {"type": "mode"},
        {"type": "x", "uuid": "../y"},
    ]
    first, second = Namer(), Namer()
    names = [first.name(content) for content in contents]
    assert names[0].id == own
    assert [name.own for name in names] == [True, False, False, False]
    assert len({name.id for name in names}) == 4
    assert [second.name(content).id for content in contents] == [name.id for name in names]


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "ünï\U0001f600", "\u2028"])
def test_the_text_of_an_entry_can_be_stored_and_says_the_same(text: str):
    entry = Namer().name({"type": "user", "text": text})
    entry.json.encode()
    assert "\0" not in entry.json
    assert json.loads(entry.json)["text"] == text


def test_the_calls_that_an_entry_answers():
    content = [
        {"type": "tool_result", "tool_use_id": "toolu_1"},
        {"type": "tool_result", "tool_use_id": "toolu_2"},
    ]
    message = {"role": "user", "content": content}
    assert Namer().name({"type": "user", "message": message}).answers() == ["toolu_1", "toolu_2"]
    assert Namer().name({"type": "progress", "message": message}).answers() == []
