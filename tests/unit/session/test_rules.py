"""The form of a rule, and the careful side of every doubt about one or about a call."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import ErrorKind, ServiceError
from services.session.domain.permissions import PermissionRules, Verdict, parse_input
from services.session.domain.rules import Rule, check_options

MALFORMED = [
    "",
    " ",
    "Read(",
    "Read)",
    "Bash)",
    "Read()",
    "Read( )",
    "Read()(",
    "Read(a)(b)",
    "Read(a))",
    "Read((a)",
    "(a)",
    "Bash,Read",
    "Bash, Read(a)",
    "Bash rm",
    "Bash:(rm",
    "Bash(rm\n:*)",
    "Bash(rm\0:*)",
    "Ba\nsh",
    "Bash\n",
    "Bash(:*)",
    "WebFetch(domain:)",
    "WebFetch(domain:*.)",
    "Read(a/*/../b)",
    "Read(a**b/c)",
    "B\u0430sh",
    "x" * 200,
]
WELL_FORMED = [
    "Bash",
    "Bash(git log:*)",
    "Bash(git *)",
    "Bash(*)",
    'Bash(python -c "print(1)")',
    "Read(docs/**)",
    "Read(../other/*.md)",
    "Read(app/(group)/[id].tsx)",
    "Edit(//tmp/**)",
    "Edit(~/x)",
    "WebFetch(domain:example.org)",
    "WebFetch(domain:*.example.org)",
    "mcp__github",
    "mcp__github__*",
    "mcp__*__search",
    "mcp__a-b.c__d(x)",
    "NoToolOfThisName",
    "Skill(pdf)",
    "*",
]
CALLS = [
    ("Bash", {"command": "rm x"}),
    ("Read", {"file_path": "a"}),
    ("WebFetch", {"url": "https://example.net"}),
]


def decide(tool, tool_input, mode="DEFAULT", allowed=(), disallowed=()):
    return PermissionRules(mode, allowed, disallowed, "/w").decide(tool, tool_input)


@pytest.mark.parametrize("field", ["allowed_tools", "disallowed_tools"])
@pytest.mark.parametrize("rule", MALFORMED)
def test_a_malformed_rule_is_refused_by_field_and_text(field, rule):
    with pytest.raises(ServiceError) as refused:
        check_options({field: ["Bash", "Read(a)", rule]})
    error = refused.value
    assert (error.kind, error.reason) == (ErrorKind.INVALID_ARGUMENT, "INVALID_REQUEST")
    [violation] = error.violations
    assert violation.field == f"sdk_options.{field}[2]"
    assert repr(rule)[1:80] in violation.description


@pytest.mark.parametrize("rule", WELL_FORMED)
def test_a_rule_of_any_tool_is_taken(rule):
    check_options({"allowed_tools": [rule], "disallowed_tools": [rule]})


def test_options_without_rules_are_taken():
    check_options({})


@pytest.mark.parametrize("rule", MALFORMED)
def test_a_malformed_rule_that_is_stored_allows_nothing(rule):
    for tool, tool_input in CALLS:
        if tool != "Read":
            assert decide(tool, tool_input, allowed=[rule]).verdict is Verdict.ASK


@pytest.mark.parametrize("rule", MALFORMED)
def test_a_malformed_rule_that_is_stored_disallows_whatever_it_may_have_meant(rule):
    for tool, tool_input in CALLS:
        if tool in rule or not any(character.isalnum() for character in rule):
            decision = decide(tool, tool_input, "BYPASS_PERMISSIONS", disallowed=[rule])
            assert (decision.verdict, decision.source) == (Verdict.DENY, "DISALLOWED_TOOLS")


@pytest.mark.parametrize(
    ("rule", "tool"),
    [("Task", "Agent"), ("Agent", "Task"), ("task", "Agent"), ("BASH", "Bash"), ("b*", "Bash")],
)
def test_a_rule_that_disallows_does_not_miss_its_tool_for_its_spelling(rule, tool):
    assert decide(tool, {"prompt": "x"}, "BYPASS_PERMISSIONS", disallowed=[rule]).verdict is Verdict.DENY


DEEP = '{"command": ' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.mark.parametrize(
    "text", [DEEP, "", "[]", "null", '"x"', "{", '{"command": "ls"', '{"a": ' + "1" * 5000 + "}"]
)
def test_an_input_that_cannot_be_read_is_denied_whatever_the_rules(text):
    tool_input = parse_input(text)
    assert tool_input is None
    for mode in ("DEFAULT", "BYPASS_PERMISSIONS", "ACCEPT_EDITS"):
        decision = decide("Bash", tool_input, mode, allowed=["Bash"])
        assert (decision.verdict, decision.source) == (Verdict.DENY, "SAFETY")
    decision = decide("Bash", tool_input, allowed=["Bash"], disallowed=["Bash(rm:*)"])
    assert (decision.verdict, decision.source) == (Verdict.DENY, "DISALLOWED_TOOLS")


def test_an_input_that_is_deep_and_can_be_read_is_looked_into():
    depth = sys.getrecursionlimit() // 2
    tool_input = parse_input('{"a": ' + "[" * depth + '"secret"' + "]" * depth + "}")
    assert tool_input is not None
    assert decide("mcp__x__y", tool_input, "BYPASS_PERMISSIONS", disallowed=["mcp__x__y(sec*)"]).verdict is (
        Verdict.DENY
    )


HOST = "WebFetch(domain:example.org)"


@pytest.mark.parametrize(
    ("url", "allowed", "denied"),
    [
        ("https://example.org", True, True),
        ("https://docs.example.org/a?b#c", True, True),
        ("HTTPS://EXAMPLE.ORG/", True, True),
        ("https://example.org:8443/ü", True, True),
        ("https://example.org./", False, True),
        ("https://example.net/", False, False),
        ("https://de.example.net/Köln", False, False),
        ("https://example.net/example.org", False, False),
        ("https://example.org.example.net/", False, False),
        # Read in one way by one program and in another by the next.
        ("https://example.org@example.net/", False, True),
        ("https://example.net\\@example.org/", False, True),
        ("https://example.org\\@example.net/", False, True),
        ("https://ex%61mple.org/", False, True),
        ("https://\uff45xample.org/", False, True),
        ("https://example。org/", False, True),
        ("https://exam\tple.org/", False, True),
        ("https:/example.org/", False, True),
        ("https://[", False, True),
        ("//example.org", False, True),
        ("example.org", False, True),
        ("file:///etc/passwd", False, True),
        ("", False, True),
        (None, False, True),
        (["https://example.org"], False, True),
    ],
)
def test_a_host_is_a_host_beyond_doubt(url, allowed, denied):
    verdict = decide("WebFetch", {"url": url, "prompt": "x"}, allowed=[HOST]).verdict
    assert verdict is (Verdict.ALLOW if allowed else Verdict.ASK)
    verdict = decide("WebFetch", {"url": url, "prompt": "x"}, "BYPASS_PERMISSIONS", disallowed=[HOST]).verdict
    assert verdict is (Verdict.DENY if denied else Verdict.ALLOW)


@pytest.mark.parametrize(
    ("rule", "tool", "tool_input", "allowed", "denied"),
    [
        ("Skill(pdf)", "Skill", {"skill": "pdf"}, True, True),
        ("Skill(pdf)", "Skill", {"args": "pdf", "skill": "other"}, False, True),
        ("Skill(pdf)", "Skill", {"skill": ["pdf"]}, False, True),
        ("Skill(pdf)", "Skill", {}, False, False),
        ("Task(reviewer)", "Agent", {"subagent_type": "reviewer", "prompt": "x"}, True, True),
        ("mcp__x__y(a*)", "mcp__x__y", {"q": "abc"}, True, True),
        ("mcp__x__y(a*)", "mcp__x__y", {"decoy": "abc", "q": "other"}, False, True),
        ("mcp__x__y(a*)", "mcp__x__y", {"q": "other", "n": {"deep": ["abc"]}}, False, True),
        ("mcp__x__y(a*)", "mcp__x__y", {"q": "other"}, False, False),
        ("mcp__x__y(a*)", "mcp__x__y", {}, False, False),
    ],
)
def test_a_pattern_on_another_tool_is_about_its_argument(rule, tool, tool_input, allowed, denied):
    mode = "DEFAULT" if tool != "Agent" else "DONT_ASK"
    if tool != "Agent":
        verdict = decide(tool, tool_input, mode, allowed=[rule]).verdict
        assert verdict is (Verdict.ALLOW if allowed else Verdict.ASK)
    verdict = decide(tool, tool_input, "BYPASS_PERMISSIONS", disallowed=[rule]).verdict
    assert verdict is (Verdict.DENY if denied else Verdict.ALLOW)


texts = st.text(max_size=40) | st.sampled_from([*MALFORMED, *WELL_FORMED])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(
    st.sampled_from(["command", "file_path", "path", "pattern", "glob", "url", "x"]), values, max_size=4
)
tools = st.sampled_from(["Bash", "Read", "Edit", "Glob", "Grep", "WebFetch", "Agent", "mcp__x__y", "New"])


@given(texts, tools, inputs)
def test_any_rule_and_any_input_are_decided(text, tool, tool_input):
    tool_input = json.loads(json.dumps(tool_input))
    rule = Rule.read(text)
    rule.allows(tool, tool_input, "/w")
    denied = rule.disallows(tool, tool_input, "/w")
    # What a rule allows, the same rule disallows too: it cannot be wider on the permissive side.
    assert denied or not rule.allows(tool, tool_input, "/w")
