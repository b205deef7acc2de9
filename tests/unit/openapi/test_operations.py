"""Paths, parameters, bodies, answers."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos.openapi import build_document
from protos.openapi.contract import ContractError

pytestmark = pytest.mark.unit

Document = dict[str, Any]
BINARY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}


def parameters(operation: Document) -> dict[str, Document]:
    return {parameter["name"]: parameter for parameter in operation["parameters"]}


def test_every_binding_is_an_operation_and_nothing_else_is(document: Document) -> None:
    found = {
        (path, verb): operation["operationId"]
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    }
    assert found == {
        ("/v1/books", "post"): "LibraryService_CreateBook",
        ("/v1/books/{book_id}", "get"): "LibraryService_GetBook",
        ("/v1/shelves/{shelf.number}/books/{book_id}", "get"): "LibraryService_GetBook_2",
        ("/v1/books/{book_id}", "patch"): "LibraryService_UpdateBook",
        ("/v1/books/{book_id}/lend", "post"): "LibraryService_LendBook",
        ("/v1/books/{book_id}/watch", "get"): "LibraryService_WatchBook",
        ("/v1/books/{book_id}/text", "get"): "LibraryService_ReadBook",
        ("/v1/books/{book_id}/text", "put"): "LibraryService_WriteBook",
    }


def test_comments_become_summary_and_description(document: Document) -> None:
    operation = document["paths"]["/v1/books"]["post"]
    assert operation["tags"] == ["Library"]
    assert operation["summary"] == "Adds a book"
    assert operation["description"].startswith("Adds a book. It can be lent at once.\n\nErrors:")
    tag = next(tag for tag in document["tags"] if tag["name"] == "Library")
    assert tag["description"].startswith("Books and their readers.\n\n")


def test_body_star_is_the_whole_request_by_reference(document: Document) -> None:
    body = document["paths"]["/v1/books"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/CreateBookRequest"}
    assert "parameters" not in document["paths"]["/v1/books"]["post"]


def test_body_star_leaves_out_what_the_path_holds(document: Document) -> None:
    operation = document["paths"]["/v1/books/{book_id}/lend"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert list(schema["properties"]) == ["reader"]
    assert list(parameters(operation)) == ["book_id"]


def test_a_body_field_leaves_the_rest_to_the_query(document: Document) -> None:
    operation = document["paths"]["/v1/books/{book_id}"]["patch"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Book", "description": "What it is to be."}
    found = {name: parameter["in"] for name, parameter in parameters(operation).items()}
    assert found == {"book_id": "path", "force": "query"}


def test_without_a_body_fields_are_query_parameters(document: Document) -> None:
    found = parameters(document["paths"]["/v1/books/{book_id}"]["get"])
    # Maps and structs cannot be said in a query; a message is said field by field.
    assert list(found) == [
        "book_id",
        "shelf.number",
        "shelf.labels",
        "printed_after",
        "genres",
        "read_mask",
    ]
    assert found["book_id"]["required"] is True
    assert found["book_id"]["schema"] == {"type": "string", "format": "uuid"}
    assert "required" not in found["shelf.number"]
    assert found["genres"]["schema"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/Book.Genre"},
    }
    assert found["printed_after"]["schema"] == {"type": "string", "format": "date-time"}
    assert found["shelf.number"]["description"] == "Its number."


def test_a_path_may_hold_a_field_of_a_field(document: Document) -> None:
    found = parameters(document["paths"]["/v1/shelves/{shelf.number}/books/{book_id}"]["get"])
    assert found["shelf.number"]["in"] == "path"
    assert found["shelf.number"]["schema"]["minimum"] == 1


def test_streams_are_said_to_be_lines_of_json(document: Document) -> None:
    success = document["paths"]["/v1/books/{book_id}/watch"]["get"]["responses"]["200"]
    assert "one on each line" in success["description"]
    assert success["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Book"}


def test_http_bodies_are_binary_both_ways(document: Document) -> None:
    text = document["paths"]["/v1/books/{book_id}/text"]
    assert text["get"]["responses"]["200"]["content"] == BINARY
    assert text["put"]["requestBody"]["content"] == BINARY
    assert list(parameters(text["put"])) == ["book_id", "edition"]


def test_errors_come_from_the_comments_of_method_and_service(document: Document) -> None:
    responses = document["paths"]["/v1/books"]["post"]["responses"]
    assert list(responses) == ["200", "400", "401", "403", "409", "429", "default"]
    assert responses["409"]["description"] == (
        "- ALREADY_EXISTS, `TITLE_TAKEN`: The title is in use\n- ALREADY_EXISTS, `SHELF_TAKEN`"
    )
    assert "404" not in responses
    assert responses["409"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Status"
    }
    reading = document["paths"]["/v1/books/{book_id}/watch"]["get"]["responses"]
    assert "BOOK_NOT_FOUND`: There is no such book" in reading["404"]["description"]
    assert "403" not in reading


def test_a_public_method_is_marked_and_answers_no_401(document: Document) -> None:
    public = document["paths"]["/v1/books/{book_id}"]["get"]
    assert public["security"] == []
    assert "401" not in public["responses"]
    assert "security" not in document["paths"]["/v1/books"]["post"]
    assert document["security"] == [{"accessToken": []}]


def test_reasons_are_listed_with_their_examples(document: Document) -> None:
    errors = document["tags"][-1]
    assert errors["name"] == "Errors"
    assert "### `library.aiagent`" in errors["description"]
    assert "| `BOOK_NOT_FOUND` | There is no such book." in errors["description"]
    assert "REASON_UNSPECIFIED" not in errors["description"]


Change = Callable[[str, str], FileDescriptorSet]


def test_two_methods_on_one_path_are_refused(changed: Change) -> None:
    with pytest.raises(
        ContractError, match=r"WatchBook: GET /v1/books/\{book_id\} belongs to another method"
    ):
        build_document(changed(r"/v1/books/\{book_id\}/watch", "/v1/books/{book_id}"))


def test_a_custom_verb_is_refused(changed: Change) -> None:
    with pytest.raises(ContractError, match="no verb of get, put"):
        build_document(changed(r'patch: "/v1/books/\{book_id\}"', 'custom: {kind: "HEAD" path: "/v1/books"}'))


def test_two_messages_of_one_name_are_refused(changed: Change) -> None:
    with pytest.raises(ContractError, match=r"belongs to google\.rpc"):
        build_document(
            changed(r"(?s)message Shelf \{(.*)", r"message Shelf {\n Status status = 4;\1message Status {}")
        )
