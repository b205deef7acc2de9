"""The decision point's rules: order, modes, patterns, and the careful side of every doubt."""

import pytest

from services.session.domain.permissions import PermissionRules, Verdict

WORKSPACE = "/srv/workspaces/s1"


def rules(mode="DEFAULT", allowed=(), disallowed=()):
    return PermissionRules(mode, allowed, disallowed, WORKSPACE)


@pytest.mark.parametrize(
    ("mode", "tool", "tool_input", "verdict"),
    [
        ("DEFAULT", "Read", {"file_path": f"{WORKSPACE}/a.py"}, Verdict.ALLOW),
        ("DEFAULT", "Read", {"file_path": "a.py"}, Verdict.ALLOW),
        ("DEFAULT", "Read", {"file_path": "/etc/passwd"}, Verdict.ASK),
        ("DEFAULT", "Read", {"file_path": f"{WORKSPACE}/../s2/a.py"}, Verdict.ASK),
        ("DEFAULT", "Read", {"file_path": f"{WORKSPACE}2/a.py"}, Verdict.ASK),
        ("DEFAULT", "Read", {"file_path": "~/.ssh/id"}, Verdict.ASK),
        ("DEFAULT", "Write", {"file_path": "a.py"}, Verdict.ASK),
        ("DEFAULT", "Bash", {"command": "ls"}, Verdict.ASK),
        ("DEFAULT", "mcp__x__y", {}, Verdict.ASK),
        ("DEFAULT", "SomethingNew", {}, Verdict.ASK),
        ("ACCEPT_EDITS", "Write", {"file_path": "a.py"}, Verdict.ALLOW),
        ("ACCEPT_EDITS", "Write", {"file_path": "/etc/passwd"}, Verdict.ASK),
        ("ACCEPT_EDITS", "Bash", {"command": "ls"}, Verdict.ASK),
        ("PLAN", "Write", {"file_path": "a.py"}, Verdict.DENY),
        ("PLAN", "Read", {"file_path": "a.py"}, Verdict.ALLOW),
        ("PLAN", "Bash", {"command": "ls"}, Verdict.DENY),
        ("BYPASS_PERMISSIONS", "Bash", {"command": "rm -rf /"}, Verdict.ALLOW),
        ("DONT_ASK", "Bash", {"command": "ls"}, Verdict.DENY),
        ("DONT_ASK", "Read", {"file_path": "a.py"}, Verdict.ALLOW),
    ],
)
def test_mode_decides_what_no_rule_names(mode, tool, tool_input, verdict):
    decision = rules(mode).decide(tool, tool_input)
    assert decision.verdict is verdict
    assert decision.source == "PERMISSION_MODE"


def test_disallowed_wins_over_allowed_and_over_every_mode():
    decision = rules("BYPASS_PERMISSIONS", ["Bash"], ["Bash(rm:*)"]).decide("Bash", {"command": "rm x"})
    assert (decision.verdict, decision.source) == (Verdict.DENY, "DISALLOWED_TOOLS")
    assert "Bash(rm:*)" in decision.reason


def test_allowed_wins_over_the_mode():
    decision = rules("PLAN", ["Write"]).decide("Write", {"file_path": "a"})
    assert (decision.verdict, decision.source) == (Verdict.ALLOW, "ALLOWED_TOOLS")


@pytest.mark.parametrize(
    ("rule", "command", "matches"),
    [
        ("Bash(git log:*)", "git log --oneline", True),
        ("Bash(git log:*)", "git log", True),
        ("Bash(git log:*)", "git logout", False),
        ("Bash(git log:*)", "git log; rm -rf .", False),
        ("Bash(git log:*)", "git log && rm -rf .", False),
        ("Bash(git log:*)", "git log $(rm -rf .)", False),
        ("Bash(git log:*)", "git log `rm -rf .`", False),
        ("Bash(git log:*)", "git log > /etc/passwd", False),
        ("Bash(git log:*)", "git log\nrm -rf .", False),
        ("Bash(make)", "make", True),
        ("Bash(make)", "make install", False),
        ("Bash", "anything; at all", True),
        ("Bash(*)", "anything; at all", True),
    ],
)
def test_a_pattern_allows_only_what_it_says(rule, command, matches):
    verdict = rules(allowed=[rule]).decide("Bash", {"command": command}).verdict
    assert verdict is (Verdict.ALLOW if matches else Verdict.ASK)


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf .",
        "  rm -rf .",
        "ls; rm -rf .",
        "ls && rm -rf .",
        "ls | rm -rf .",
        "echo $(rm -rf .)",
        "echo `rm -rf .`",
        "FOO=1 rm -rf .",
        "env FOO=1 rm -rf .",
        "sudo rm -rf .",
        "/bin/rm -rf .",
        "'rm' -rf .",
        "(rm -rf .)",
        "true\nrm -rf .",
        "true &\nrm x",
        "find . | xargs rm -rf",
        "rm",
    ],
)
def test_a_pattern_disallows_every_way_to_say_it(command):
    verdict = (
        rules("BYPASS_PERMISSIONS", disallowed=["Bash(rm:*)"]).decide("Bash", {"command": command}).verdict
    )
    assert verdict is Verdict.DENY


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        ("Edit(docs/**)", "docs/a/b.md", True),
        ("Edit(docs/**)", f"{WORKSPACE}/docs/b.md", True),
        ("Edit(docs/**)", "docs/../src/x.py", False),
        ("Edit(docs/*)", "docs/a/b.md", False),
        ("Edit(*.md)", "a.md", True),
        ("Edit(**/*.md)", "deep/down/a.md", True),
        ("Edit(//tmp/**)", "/tmp/x", True),
        ("Edit(/tmp/**)", "/tmp/x", True),
    ],
)
def test_path_patterns_are_globs_below_the_workspace(rule, path, matches):
    verdict = rules(allowed=[rule]).decide("Edit", {"file_path": path}).verdict
    assert verdict is (Verdict.ALLOW if matches else Verdict.ASK)


@pytest.mark.parametrize(
    ("rule", "tool", "tool_input", "matches"),
    [
        ("mcp__github", "mcp__github__search", {}, True),
        ("mcp__github", "mcp__github2__search", {}, False),
        ("mcp__github__*", "mcp__github__search", {}, True),
        ("WebFetch(domain:example.org)", "WebFetch", {"url": "https://docs.example.org/x"}, True),
        ("WebFetch(domain:example.org)", "WebFetch", {"url": "https://badexample.org/"}, False),
        ("WebFetch(domain:example.org)", "WebFetch", {"url": "https://example.org.evil.net/"}, False),
    ],
)
def test_names_and_hosts(rule, tool, tool_input, matches):
    verdict = rules(allowed=[rule]).decide(tool, tool_input).verdict
    assert verdict is (Verdict.ALLOW if matches else Verdict.ASK)
