"""Shell commands as permission rules see them.

A rule that allows must know all that a command runs, so it takes none that holds shell syntax. A rule that disallows
looks for its program in everything that the text may run: this is more than a shell would find, and still not all of it
(`$X`, `eval`, a script, another program that does the same). It guides an agent; what holds it is the sandbox.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

MAX_COMMAND_CHARACTERS = 64 * 1024
"""A longer command is not looked into: whoever decides it decides for other sessions too."""
# What makes one command line run more than its first word says: separators, substitutions, redirections, groups.
_SYNTAX = re.compile(r"[;&|<>`$(){}\n\r\\\x00]")
_SEPARATORS = re.compile(r"[;&|\n\r(){}`]")
_REDIRECTION = re.compile(r"(?<!\d)\d*+[<>]++")
_ASSIGNMENT = re.compile(r"\w+(\[[^]]*\])?\+?=.*", re.DOTALL)
_WORD = re.compile(r"""(?:[^\s'"\\]++|\\.|'[^']*+'|"(?:[^"\\]++|\\.)*+")++""", re.DOTALL)
_QUOTING = str.maketrans("", "", "'\"\\")
_BUDGET_CHARACTERS = 512 * 1024
_PIECE_CHARACTERS = 16
# Words before a command that do not hide it.
_TRANSPARENT = frozenset(
    {
        "if",
        "then",
        "do",
        "else",
        "elif",
        "while",
        "until",
        "!",
        "time",
        "builtin",
        "coproc",
    }
)
# Programs that run what stands behind them, after options and words of their own.
_RUNNERS = frozenset(
    {
        "env",
        "exec",
        "command",
        "nohup",
        "sudo",
        "doas",
        "su",
        "timeout",
        "nice",
        "ionice",
        "chrt",
        "taskset",
        "stdbuf",
        "setsid",
        "xargs",
        "parallel",
        "watch",
        "flock",
        "strace",
        "ltrace",
        "script",
        "unshare",
        "nsenter",
        "chroot",
        "setpriv",
        "runuser",
        "busybox",
        "toybox",
    }
)
_RUN_OPTIONS = frozenset(
    {
        "-exec",
        "-execdir",
        "-ok",
        "-okdir",
        "-x",
        "-X",
        "--exec",
        "--exec-batch",
    }
)
# Programs that read a word as a command line.
_SHELLS = frozenset(
    {
        "sh",
        "bash",
        "dash",
        "zsh",
        "ksh",
        "ash",
        "mksh",
        "fish",
        "eval",
        "trap",
        "su",
        "script",
        "watch",
        "flock",
        "parallel",
    }
)
_MAX_DEPTH = 4


class _TooMuch(Exception):
    """A command so tangled that it is not looked into any further."""


class _Budget:
    def __init__(self) -> None:
        self._left = _BUDGET_CHARACTERS

    def spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise _TooMuch


def allows(pattern: str, command: str) -> bool:
    """Whether a pattern that allows covers all that a command may run."""
    command = command.strip()
    if command == pattern.strip():
        return True
    wanted = _wildcards(pattern)
    return "*" in wanted and not _SYNTAX.search(command) and _whole(wanted, command)


def disallows(pattern: str, command: str) -> bool:
    """Whether a pattern that disallows is met by any part of a command; one that is too long or tangled is."""
    if len(command) > MAX_COMMAND_CHARACTERS:
        return True
    # A pattern for a whole command is met by the same command with more arguments.
    wanted = _wildcards(pattern)
    wanted = wanted if wanted.endswith("*") else f"{wanted} *"
    if _whole(wanted, command.strip()):
        return True
    found = _found(command)
    try:
        return found is None or _any_part(wanted, found, _Budget())
    except _TooMuch:
        return True


@lru_cache(maxsize=4)
def _found(command: str) -> Sequence[tuple[Sequence[str], int]] | None:
    """Everything that a command might run, found once for all the rules; None if it is too tangled."""
    try:
        return list(_commands(command, _Budget()))
    except _TooMuch:
        return None


def _any_part(wanted: str, commands: Sequence[tuple[Sequence[str], int]], budget: _Budget) -> bool:
    literal = wanted.removesuffix(" *")
    words = _split(literal)
    if not words:
        return True
    words[0] = _name(words[0])
    for found, at in commands:
        if "*" not in literal:
            if _begins(found, at, words):
                return True
        elif _may_be(_name(found[at]), words[0]):
            text = " ".join([_name(found[at]), *found[at + 1 :]])
            budget.spend(len(text))
            if any(character in found[at] for character in "*?[") or _whole(
                " ".join([words[0], *words[1:], *(["*"] if literal != wanted else [])]), text
            ):
                return True
    return False


def _wildcards(pattern: str) -> str:
    """Writes `git:*` as `git *`, its other form."""
    pattern = pattern.strip()
    return f"{pattern.removesuffix(':*').rstrip()} *" if pattern.endswith(":*") else pattern


def _whole(wanted: str, command: str) -> bool:
    """Matches a command with `*` for any text; ` *` at the end is for any arguments, or none."""
    if wanted.endswith(" *") and _whole(wanted[:-2], command):
        return True
    glob = wanted.replace("[", "[[]").replace("?", "[?]")
    return fnmatchcase(command, glob) or (wanted.endswith(" *") and fnmatchcase(command, f"{glob[:-2]}\t*"))


def _may_be(program: str, wanted: str) -> bool:
    """Whether a program's name, in which the shell may still fill in, is one that a pattern wants."""
    return fnmatchcase(program, wanted) or (
        any(character in program for character in "*?[") and fnmatchcase(wanted.rstrip("*"), program)
    )


def _begins(found: Sequence[str], at: int, wanted: Sequence[str]) -> bool:
    """Whether words begin with the wanted ones; between these, options and what follows one do not count."""
    if not _may_be(_name(found[at]), wanted[0].replace("[", "[[]").replace("?", "[?]")):
        return False
    at += 1
    for word in wanted[1:]:
        after_option = False
        while at < len(found) and found[at] != word and (after_option or found[at].startswith("-")):
            after_option = found[at].startswith("-")
            at += 1
        if at >= len(found) or found[at] != word:
            return False
        at += 1
    return True


def _commands(text: str, budget: _Budget, depth: int = 0) -> Iterator[tuple[Sequence[str], int]]:
    """Finds everything that a text might run: words, and at which of them a command begins."""
    # What a text in the log cannot hold, the log has as U+FFFD; a shell leaves it out.
    text = re.sub(r"\\\r?\n|[\x00\ufffd]", "", text)
    text = re.sub(r"\$\{?IFS\}?", " ", text)
    text = re.sub(r"\$(?=['\"])", "", text)
    text = re.sub(r"(?<=[<>])[&|]|&(?=>)", "", text)
    variants = [text]
    if "{" in text:
        variants.append(text.replace(",", " "))
    for variant in variants:
        for spelled in {variant, variant.translate(_QUOTING)}:
            budget.spend(len(spelled))
            for part in _SEPARATORS.split(spelled):
                # The first word after a redirection is its file; the command goes on behind it.
                for number, piece in enumerate(_REDIRECTION.split(part)):
                    budget.spend(_PIECE_CHARACTERS)
                    words = _split(piece)
                    yield from _in_words(words, 0, budget, depth)
                    if number:
                        yield from _in_words(words, 1, budget, depth)


def _in_words(
    words: Sequence[str], at: int, budget: _Budget, depth: int
) -> Iterator[tuple[Sequence[str], int]]:
    while at < len(words) and (
        _ASSIGNMENT.fullmatch(words[at]) or words[at].startswith("-") or words[at] in _TRANSPARENT
    ):
        at += 1
    if at >= len(words):
        return
    runner = _name(words[at]) in _RUNNERS
    for index in range(at, len(words)):
        if index > at and not runner and words[index - 1] not in _RUN_OPTIONS:
            continue
        yield words, index
        if depth >= _MAX_DEPTH:
            continue
        if any(space in words[index] for space in " \t\n"):
            yield from _commands(words[index], budget, depth + 1)
        elif _name(words[index]) in _SHELLS:
            budget.spend(len(words) - index)
            for word in words[index + 1 :]:
                if any(space in word for space in " \t\n"):
                    yield from _commands(word, budget, depth + 1)
            rest = " ".join(words[index + 1 :])
            budget.spend(len(rest))
            yield from _commands(rest, budget, depth + 1)


def _name(program: str) -> str:
    return program.rpartition("/")[2]


def _split(text: str) -> list[str]:
    """The words of a text, without their quotes; a quote without an end is no word's."""
    return [_unquoted(found[0]) for found in _WORD.finditer(text)]


def _unquoted(word: str) -> str:
    if not any(character in word for character in "'\"\\"):
        return word
    try:
        return "".join(shlex.split(word))
    except ValueError:
        return word.translate(_QUOTING)
