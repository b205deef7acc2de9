"""Which values a template's variables take."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import ServiceError
from services.scheduler.domain import variables as domain
from services.scheduler.domain.variables import Variable, VariableType, check_declarations, read_values

pytestmark = pytest.mark.unit
T = VariableType


def refused(declared: list[Variable], given: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ServiceError) as error:
        read_values(declared, given)
    assert error.value.reason == "INVALID_REQUEST"
    return [(violation.field, violation.reason) for violation in error.value.violations]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_each_fault_is_named() -> None:
    declared = [
        Variable("city", T.STRING, required=True),
        Variable("days", T.INTEGER, required=True),
        Variable("share", T.NUMBER),
        Variable("loud", T.BOOLEAN),
    ]
    given = {"days": "three", "share": True, "loud": 1.0, "volume": 11}
    assert refused(declared, given) == [
        ("variables.volume", "UNKNOWN"),
        ("variables.city", "MISSING"),
        ("variables.days", "WRONG_TYPE"),
        ("variables.share", "WRONG_TYPE"),
        ("variables.loud", "WRONG_TYPE"),
    ]


@pytest.mark.parametrize(
    ("wanted", "given", "value"),
    [
        (T.STRING, "", ""),
        (T.INTEGER, 3.0, 3),
        (T.INTEGER, -7, -7),
        (T.NUMBER, 1.5, 1.5),
        (T.NUMBER, 2.0, 2),
        (T.BOOLEAN, False, False),
        (T.JSON, {"a": [1.0, None, "x", {"b": 2.5}]}, {"a": [1, None, "x", {"b": 2.5}]}),
        (T.JSON, None, None),
        (T.JSON, deep(15), deep(15)),
    ],
)
def test_values_take_their_type(wanted: VariableType, given: Any, value: Any) -> None:
    found = read_values([Variable("a", wanted, required=True)], {"a": given})
    assert repr(found) == repr({"a": value}), "3.0 would be written as such"


@pytest.mark.parametrize(
    ("wanted", "given", "reason"),
    [
        (T.STRING, 1, "WRONG_TYPE"),
        (T.STRING, None, "WRONG_TYPE"),
        (T.STRING, "a\0b", "WRONG_TYPE"),
        (T.STRING, "\ud800", "WRONG_TYPE"),
        (T.STRING, "a" * (domain.MAX_VALUE_CHARACTERS + 1), "TOO_LARGE"),
        (T.INTEGER, 1.5, "WRONG_TYPE"),
        (T.INTEGER, True, "WRONG_TYPE"),
        (T.INTEGER, 2.0**60, "TOO_LARGE"),
        (T.INTEGER, float("inf"), "WRONG_TYPE"),
        (T.NUMBER, float("nan"), "WRONG_TYPE"),
        (T.NUMBER, 10**400, "WRONG_TYPE"),
        (T.NUMBER, "1", "WRONG_TYPE"),
        (T.BOOLEAN, "true", "WRONG_TYPE"),
        (T.JSON, deep(17), "TOO_LARGE"),
        (T.JSON, deep(100_000), "TOO_LARGE"),
        (T.JSON, [0] * 10_001, "TOO_LARGE"),
        (T.JSON, {"a": ["\ud800"]}, "WRONG_TYPE"),
        (T.JSON, {"a\0": 1}, "WRONG_TYPE"),
        (T.JSON, [float("nan")], "WRONG_TYPE"),
        (T.JSON, {1: 1}, "WRONG_TYPE"),
        (T.JSON, object(), "WRONG_TYPE"),
    ],
)
def test_values_of_another_type(wanted: VariableType, given: Any, reason: str) -> None:
    assert refused([Variable("a", wanted)], {"a": given}) == [("variables.a", reason)]


def test_all_values_together_are_bounded() -> None:
    declared = [Variable(f"v{number}", T.STRING) for number in range(5)]
    text = "a" * 60_000
    assert refused(declared, {variable.name: text for variable in declared}) == [("variables", "TOO_LARGE")]
    assert len(read_values(declared, {"v0": text})) == 1


def test_what_is_not_given() -> None:
    declared = [
        Variable("a", T.INTEGER, default=3.0),
        Variable("b", T.STRING, required=True, default="x"),
        Variable("c", T.STRING),
        Variable("d", T.BOOLEAN, default=False),
    ]
    # Neither required nor given nor with a default: undefined, for a template to ask for.
    assert read_values(declared, {}) == {"a": 3, "b": "x", "d": False}
    assert read_values(declared, {"a": 4, "d": True}) == {"a": 4, "b": "x", "d": True}


def test_declarations() -> None:
    declared = [
        Variable("good_1", T.STRING),
        Variable("1bad", T.STRING),
        Variable("_hidden", T.STRING),
        Variable("a" * 65, T.STRING),
        Variable("loop", T.STRING),
        Variable("good_1", T.STRING),
        Variable("count", T.INTEGER, default="many"),
    ]
    assert [(v.field, v.reason) for v in check_declarations(declared, "task.variables")] == [
        ("task.variables[1].name", "NAME"),
        ("task.variables[2].name", "NAME"),
        ("task.variables[3].name", "NAME"),
        ("task.variables[4].name", "NAME"),
        ("task.variables[5].name", "DUPLICATE"),
        ("task.variables[6].default_value", "WRONG_TYPE"),
    ]
    many = [Variable(f"v{number}", T.STRING) for number in range(101)]
    assert [violation.reason for violation in check_declarations(many, "variables")] == ["TOO_MANY"]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(wanted=st.sampled_from(T), value=json_values)
def test_any_value_is_taken_or_refused(wanted: VariableType, value: Any) -> None:
    fields = ["variables.a"]
    try:
        read_values([Variable("a", wanted)], {"a": value})
    except ServiceError as error:
        fields = [violation.field for violation in error.violations]
    assert fields == ["variables.a"]
