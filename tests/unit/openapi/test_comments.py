"""How a comment is taken apart."""

import pytest

from protos.openapi.comments import parse

pytestmark = pytest.mark.unit


def test_the_summary_is_the_first_sentence() -> None:
    assert parse("Sends it,\nas in `a.b`. Waits\nfor nobody.").summary == "Sends it, as in `a.b`"


def test_an_abbreviation_does_not_end_a_sentence() -> None:
    assert parse("Takes 30 s. at most, e.g. less. Then ends.").summary == "Takes 30 s. at most, e.g. less"


def test_examples_leave_the_description() -> None:
    comment = parse('The title.\nExample: {"a": [1, 2]}.\n\nMore.')
    assert comment.examples == [{"a": [1, 2]}]
    assert comment.description == "The title.\n\nMore."


def test_what_only_looks_like_an_example_stays() -> None:
    comment = parse('Taken.\nExample: {"a": 1} with retry_delay 12s.')
    assert comment.examples == []
    assert comment.description == 'Taken.\n\nExample: {"a": 1} with retry_delay 12s.'


def test_errors_pair_statuses_with_reasons() -> None:
    comment = parse(
        "Does it.\n\nErrors: FAILED_PRECONDITION with STATE_INVALID or\nBUSY_NOW; NOT_FOUND with ROW_GONE "
        "while a turn runs. UNAVAILABLE."
    )
    assert comment.errors == [
        ("FAILED_PRECONDITION", "STATE_INVALID"),
        ("FAILED_PRECONDITION", "BUSY_NOW"),
        ("NOT_FOUND", "ROW_GONE"),
        ("UNAVAILABLE", ""),
    ]


def test_statuses_outside_an_errors_paragraph_are_prose() -> None:
    assert parse("Ends with NOT_FOUND ROW_GONE when it is over.").errors == []
