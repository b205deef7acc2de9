"""Paths in tool calls: however a path is spelled, it is judged as the one that it is."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.session.domain import paths
from services.session.domain.permissions import PermissionRules, Verdict

WORKSPACE = "/srv/workspaces/s1"
OUTSIDE = [
    "/etc/passwd",
    "//etc/passwd",
    "///etc/passwd",
    "/./etc/passwd",
    "/etc//passwd/",
    "/etc/../etc/passwd",
    f"{WORKSPACE}/../../../etc/passwd",
    f"/{WORKSPACE}/../../../etc/passwd",
    "../../../etc/passwd",
    "a/../../../../etc/passwd",
    " /etc/passwd",
    "~/.ssh/id",
    "~root/.ssh/id",
    f"{WORKSPACE}/\0/../../../../etc/passwd",
    "/" * 5000 + "etc/passwd",
]
ARGUMENTS = [
    ("Read", "file_path"),
    ("Write", "file_path"),
    ("Edit", "file_path"),
    ("MultiEdit", "file_path"),
    ("NotebookRead", "notebook_path"),
    ("NotebookEdit", "notebook_path"),
    ("Glob", "path"),
    ("Grep", "path"),
    ("LS", "path"),
]


def decide(tool, tool_input, mode="ACCEPT_EDITS", allowed=(), disallowed=()):
    return PermissionRules(mode, allowed, disallowed, WORKSPACE).decide(tool, tool_input).verdict


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(("tool", "argument"), ARGUMENTS)
def test_a_path_outside_is_outside_however_it_is_spelled(tool, argument, path):
    assert decide(tool, {argument: path}) is Verdict.ASK
    assert decide(tool, {argument: path}, allowed=[f"{tool}(**)"]) is Verdict.ASK
    assert decide(tool, {argument: path}, mode="DONT_ASK") is Verdict.DENY


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(("tool", "argument"), ARGUMENTS)
def test_a_disallowed_path_is_met_however_it_is_spelled(tool, argument, path):
    rule = f"{tool}(//root/.ssh/**)" if path.startswith("~") else f"{tool}(//etc/passwd)"
    assert decide(tool, {argument: path}, "BYPASS_PERMISSIONS", disallowed=[rule]) is Verdict.DENY


@pytest.mark.parametrize(
    "tool_input",
    [
        {"file_path": ["/etc/passwd"]},
        {"file_path": {"path": "/etc/passwd"}},
        {"file_path": 7},
        {"file_path": f"{WORKSPACE}/a", "path": "/etc"},
        {"notebook_path": "/etc/passwd", "file_path": f"{WORKSPACE}/a"},
        {},
    ],
)
def test_what_names_no_path_or_several_is_not_inside(tool_input):
    for tool in ("Read", "Edit"):
        assert decide(tool, tool_input) is Verdict.ASK
        assert decide(tool, tool_input, allowed=[f"{tool}(**)"]) is Verdict.ASK
        assert decide(tool, tool_input, "BYPASS_PERMISSIONS", disallowed=[f"{tool}(/etc/**)"]) is Verdict.DENY


@pytest.mark.parametrize(
    ("tool", "tool_input", "verdict"),
    [
        ("Glob", {"pattern": "**/*.py"}, Verdict.ALLOW),
        ("Glob", {"pattern": f"{WORKSPACE}/src/*.py"}, Verdict.ALLOW),
        ("Glob", {"pattern": "*.py", "path": "src"}, Verdict.ALLOW),
        ("Glob", {"pattern": "/etc/*"}, Verdict.ASK),
        ("Glob", {"pattern": "//etc/*"}, Verdict.ASK),
        ("Glob", {"pattern": "/*"}, Verdict.ASK),
        ("Glob", {"pattern": "../*"}, Verdict.ASK),
        ("Glob", {"pattern": "src/../../*"}, Verdict.ASK),
        ("Glob", {"pattern": "*/../../../x"}, Verdict.ASK),
        ("Glob", {"pattern": "{..,src}/*"}, Verdict.ASK),
        ("Glob", {"pattern": "{/etc,src}/*"}, Verdict.ASK),
        ("Glob", {"pattern": "~/.ssh/*"}, Verdict.ASK),
        ("Glob", {"pattern": ["/etc/*"]}, Verdict.ASK),
        ("Glob", {"pattern": "*", "path": "/etc"}, Verdict.ASK),
        ("Glob", {"pattern": "/etc/*", "path": "src"}, Verdict.ASK),
        ("Grep", {"pattern": "/etc/../x"}, Verdict.ALLOW),
        ("Grep", {"pattern": "x", "glob": "*.{ts,tsx}"}, Verdict.ALLOW),
        ("Grep", {"pattern": "x", "glob": "/etc/*"}, Verdict.ASK),
        ("Grep", {"pattern": "x", "glob": "../*"}, Verdict.ASK),
        ("LS", {}, Verdict.ALLOW),
        ("LS", {"path": "/"}, Verdict.ASK),
    ],
)
def test_a_search_is_judged_by_where_it_reaches(tool, tool_input, verdict):
    assert decide(tool, tool_input) is verdict


@pytest.mark.parametrize(
    ("rule", "tool", "tool_input", "denied"),
    [
        # However the rule is spelled.
        ("Read(secret/)", "Read", {"file_path": "secret/a/b"}, True),
        ("Read(secret)", "Read", {"file_path": "secret/a/b"}, True),
        ("Read(./secret/**)", "Read", {"file_path": "secret/a"}, True),
        ("Read(docs/../secret/**)", "Read", {"file_path": "secret/a"}, True),
        ("Read(secret//**)", "Read", {"file_path": "secret/a"}, True),
        ("Read(**/.env)", "Read", {"file_path": ".env"}, True),
        ("Read(**/.env)", "Read", {"file_path": "a/b/.env"}, True),
        ("Read(**.env)", "Read", {"file_path": "a/b/x.env"}, True),
        ("Read(~/.ssh/**)", "Read", {"file_path": "/home/agent/.ssh/id"}, True),
        ("Read(~/.ssh/**)", "Read", {"file_path": "~/.ssh/id"}, True),
        ("Read(secret/**)", "Read", {"file_path": "docs/a"}, False),
        ("Read(secret)", "Read", {"file_path": "secretary"}, False),
        ("Read([ab].md)", "Read", {"file_path": "a.md"}, False),
        # The tools that do the same.
        ("Edit(.github/**)", "Write", {"file_path": ".github/x.yml"}, True),
        ("Edit(.github/**)", "NotebookEdit", {"notebook_path": ".github/x.ipynb"}, True),
        ("Edit(.github/**)", "Read", {"file_path": ".github/x.yml"}, False),
        ("Read(secret/**)", "Grep", {"pattern": ".", "path": "secret"}, True),
        ("Read(secret/**)", "Grep", {"pattern": "."}, True),
        ("Read(secret/**)", "Grep", {"pattern": ".", "path": "docs"}, False),
        ("Read(secret/**)", "Glob", {"pattern": "*"}, False),
        ("Read(secret/**)", "Glob", {"pattern": "*", "path": "secret"}, True),
        ("Glob(secret/**)", "Glob", {"pattern": "**"}, True),
        ("Glob(secret/**)", "Glob", {"pattern": f"{WORKSPACE}/secret/*"}, True),
        ("Glob(secret/**)", "Glob", {"pattern": "*", "path": "docs"}, False),
        ("read(secret/**)", "Read", {"file_path": "secret/a"}, True),
    ],
)
def test_a_rule_that_disallows_a_path_means_what_lies_there(rule, tool, tool_input, denied):
    verdict = decide(tool, tool_input, "BYPASS_PERMISSIONS", disallowed=[rule])
    assert verdict is (Verdict.DENY if denied else Verdict.ALLOW)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".GIT/hooks/post-checkout",
        "sub/.git/config",
        ".claude/settings.json",
        ".mcp.json",
        "a/.envrc",
    ],
)
def test_to_edit_what_makes_programs_run_things_is_asked_for(path):
    assert decide("Write", {"file_path": path}) is Verdict.ASK
    assert decide("Write", {"file_path": path}, allowed=["Write"]) is Verdict.ALLOW
    assert decide("Write", {"file_path": "src/git.py"}) is Verdict.ALLOW


def test_a_subagent_with_a_work_tree_of_its_own_is_asked_for():
    assert decide("Agent", {"prompt": "x"}) is Verdict.ALLOW
    assert decide("Agent", {"prompt": "x", "isolation": "worktree"}) is Verdict.ASK
    assert decide("Agent", {"prompt": "x", "isolation": "worktree"}, mode="PLAN") is Verdict.DENY


pieces = st.lists(st.sampled_from(["", ".", "..", "a", "etc", "s1", "*", "~"]), max_size=8).map("/".join)


@given(st.sampled_from(["", "/", "//", "///", f"{WORKSPACE}/"]), pieces)
def test_a_path_has_one_spelling_and_it_is_that_of_linux(begin, rest):
    path = begin + rest
    normal = paths.normal(path, WORKSPACE)
    assert normal == paths.normal(normal, "/elsewhere")
    assert normal.startswith("/")
    assert not normal.startswith("//")
    assert normal == "/" + posixpath.normpath(posixpath.join(WORKSPACE, path)).lstrip("/")


@given(st.sampled_from(["", "/", "//", f"{WORKSPACE}/"]), pieces)
def test_what_is_allowed_without_a_question_lies_inside(begin, rest):
    path = begin + rest
    real = "/" + posixpath.normpath(posixpath.join(WORKSPACE, path)).lstrip("/")
    inside = (real + "/").startswith(WORKSPACE + "/") and not path.startswith("~")
    for tool, argument in ARGUMENTS:
        assert decide(tool, {argument: path}) is (Verdict.ALLOW if inside else Verdict.ASK)


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "*", "?", "a*", "**"]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["a", "b", "ab", "ba"]), min_size=1, max_size=5),
)
def test_a_glob_matches_as_its_definition_says(pattern, parts):
    def matches(wanted, found):
        if not wanted:
            return not found
        if wanted[0] == "**":
            return matches(wanted[1:], found) or (bool(found) and matches(wanted, found[1:]))
        if not found:
            return False
        one = {"*": True, "?": len(found[0]) == 1, "a*": found[0].startswith("a")}
        return one.get(wanted[0], wanted[0] == found[0]) and matches(wanted[1:], found[1:])

    assert paths.glob_matches("/" + "/".join(pattern), "/" + "/".join(parts)) is matches(pattern, parts)


def test_a_long_path_costs_no_more_than_its_length():
    pattern = "/" + "/".join(["**", "a*a*a*a*b"] * 40)
    path = "/" + "/".join(["a" * 60] * 60)
    assert not paths.covers(pattern, path)
    assert not paths.glob_matches(pattern, path)
    assert decide("Read", {"file_path": "a/" * 2000}) is Verdict.ASK
    assert decide("Read", {"file_path": "a/" * 2000}, "BYPASS_PERMISSIONS", disallowed=["Read(b)"]) is (
        Verdict.DENY
    )
