"""Messages, fields, rules."""

from typing import Any

import pytest

from protos.openapi.rules import keywords, refuses_absence

pytestmark = pytest.mark.unit

Document = dict[str, Any]


@pytest.fixture(scope="module")
def book(document: Document) -> Document:
    return document["components"]["schemas"]["Book"]


def test_fields_keep_the_names_of_the_contract(book: Document) -> None:
    assert list(book["properties"])[:3] == ["id", "title", "genre"]
    assert "print_time" in book["properties"]


def test_required_and_read_only(book: Document, document: Document) -> None:
    assert book["required"] == ["title", "authors"]
    assert book["properties"]["id"]["readOnly"] is True
    assert document["components"]["schemas"]["CreateBookRequest"]["required"] == ["book", "genre"]


def test_comments_describe_and_give_examples(book: Document) -> None:
    assert book["properties"]["title"]["description"] == "The title."
    assert book["properties"]["title"]["examples"] == ["Solaris"]
    assert book["examples"] == [{"title": "Solaris", "genre": "FICTION"}]


def test_enums_are_words_in_any_case(document: Document) -> None:
    genre = document["components"]["schemas"]["Book.Genre"]
    assert genre["type"] == "string"
    assert genre["enum"] == ["GENRE_UNSPECIFIED", "FICTION", "SCIENCE"]
    assert "any case" in genre["description"]
    assert "- `FICTION`: Invented." in genre["description"]


def test_a_forbidden_word_is_not_offered(document: Document) -> None:
    genre = document["components"]["schemas"]["CreateBookRequest"]["properties"]["genre"]
    assert genre["enum"] == ["FICTION", "SCIENCE"]


def test_maps_and_lists(book: Document) -> None:
    assert book["properties"]["copies"] == {
        "type": "object",
        "additionalProperties": {"type": "integer", "format": "int32", "minimum": 1},
        "maxProperties": 9,
        "propertyNames": {"pattern": "^[a-z]+$"},
        "description": "Copies by place.",
    }
    assert book["properties"]["authors"] == {
        "type": "array",
        "items": {"type": "string", "maxLength": 40},
        "minItems": 1,
        "maxItems": 5,
        "description": "Authors.",
    }


def test_types_have_their_form_in_json(book: Document) -> None:
    found = book["properties"]
    assert found["sold"] | {"description": ""} == {
        "type": "string",
        "format": "int64",
        "pattern": "^[0-9]+$",
        "description": "",
    }
    assert found["cover"]["contentEncoding"] == "base64"
    assert found["print_time"]["format"] == "date-time"
    assert found["lend_duration"]["pattern"].endswith("s$")
    assert found["notes"] | {"description": ""} == {
        "type": "object",
        "additionalProperties": True,
        "description": "",
    }
    assert found["sequel_of"]["$ref"] == "#/components/schemas/Book"
    assert found["isbn"]["deprecated"] is True


def test_a_required_oneof_is_one_of_its_members(book: Document) -> None:
    assert book["oneOf"] == [
        {"title": "shelf", "required": ["shelf"]},
        {"title": "box", "required": ["box"]},
    ]
    assert "At most one of `reader`, `library` is set." in book["description"]


def test_rules_across_fields_are_told(document: Document) -> None:
    assert "Rule: a book has pages." in document["components"]["schemas"]["CreateBookRequest"]["description"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, {}),
        ({"string": {"len": "3"}}, {"minLength": 3, "maxLength": 3}),
        ({"string": {"min_len": "1", "max_len": "9"}}, {"minLength": 1, "maxLength": 9}),
        ({"string": {"max_bytes": "9"}}, {"maxLength": 9}),
        ({"string": {"max_bytes": "9", "max_len": "4"}}, {"maxLength": 4}),
        ({"string": {"pattern": "^a$", "not_contains": "\0"}}, {"pattern": "^a$"}),
        ({"string": {"not_contains": "\0"}}, {"pattern": "^[^\\u0000]*$"}),
        ({"string": {"prefix": "a.b"}}, {"pattern": "^a\\.b"}),
        ({"string": {"in": ["a", "b"]}}, {"enum": ["a", "b"]}),
        ({"string": {"const": "a"}}, {"const": "a"}),
        ({"string": {"email": True}}, {"format": "email"}),
        ({"string": {"uri": True}}, {"format": "uri"}),
        ({"int32": {"gte": 0, "lte": 10}}, {"minimum": 0, "maximum": 10}),
        ({"double": {"gt": 0.5, "lt": 1.5}}, {"exclusiveMinimum": 0.5, "exclusiveMaximum": 1.5}),
        ({"int32": {"in": [1, 2]}}, {"enum": [1, 2]}),
        ({"int64": {"gte": "0"}}, {"pattern": "^[0-9]+$"}),
        ({"int64": {"gte": "-5"}}, {}),
        ({"repeated": {"unique": True, "min_items": "2"}}, {"uniqueItems": True, "minItems": 2}),
        ({"map": {"min_pairs": "1"}}, {"minProperties": 1}),
        ({"duration": {"gte": "1s"}}, {}),
    ],
)
def test_keywords(rules: Document, expected: Document) -> None:
    assert keywords(rules) == expected


@pytest.mark.parametrize(
    ("rules", "has_presence", "expected"),
    [
        ({}, False, False),
        ({"required": True}, True, True),
        ({"string": {"min_len": "1"}}, False, True),
        ({"string": {"min_len": "1"}}, True, False),
        ({"string": {"uuid": True}}, False, True),
        ({"string": {"uuid": True}, "ignore": "IGNORE_IF_ZERO_VALUE"}, False, False),
        ({"string": {"pattern": "^a$"}}, False, True),
        ({"string": {"pattern": "^a*$"}}, False, False),
        ({"string": {"max_len": "5"}}, False, False),
        ({"int32": {"gte": 1}}, False, True),
        ({"int32": {"gte": 0}}, False, False),
        ({"int64": {"gte": "1"}}, False, True),
        ({"enum": {"not_in": [0]}}, False, True),
        ({"repeated": {"min_items": "1"}}, False, True),
        ({"map": {"min_pairs": "1"}}, False, True),
    ],
)
def test_refuses_absence(rules: Document, has_presence: bool, expected: bool) -> None:
    assert refuses_absence(rules, has_presence=has_presence) is expected
