"""Jinja2 in its sandbox, for templates that anybody may have written: what renders them, and what is wrong with them.

The sandbox bounds what a template reaches, not what it costs: constants are worked out while it is compiled, and a loop
has no end. So all of this runs in a process whose time and memory the kernel of the machine bounds, and nothing here
imports more than Jinja2, that such a process starts fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from types import CodeType, NoneType
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

MESSAGE_CHARACTERS = 300
# With an undefined value, which says itself what it is, and markup, groups and dictionary views, which filters make.
_PRINTABLE = (str, int, float, NoneType, Mapping, Sequence, Set, ValuesView, Undefined)
_ELSEWHERE = (nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)


class NoText(Exception):
    """A template prints what has no text."""


class TooLong(Exception):
    """A template renders to more than it may."""


def build_environment(**options: Any) -> ImmutableSandboxedEnvironment:
    """Returns what templates are read in: only what comes to the same each time, and nothing to load others with.

    Args:
        options: more of Jinja2's own, such as `autoescape`.
    """
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        cache_size=0,
        **{"finalize": printable, **options},
    )
    for table, name in ((environment.globals, "lipsum"), (environment.filters, "random")):
        del table[name]
    return environment


def printable(value: Any) -> Any:
    """Returns what a template prints. Raises NoText for what has no text, but an address in memory."""
    if isinstance(value, Iterator):
        raise NoText("what is printed is no text: a list is meant, perhaps (|list)")
    if not isinstance(value, _PRINTABLE):
        raise NoText("what is printed is no text, number, boolean, list or mapping: a call is meant, perhaps")
    return value


def names_in(environment: ImmutableSandboxedEnvironment, template: str) -> list[str]:
    """The variables that a template takes from outside.

    Raises:
        TemplateSyntaxError: It is no template, or asks for another one.
    """
    tree = environment.parse(template)
    for node in tree.find_all(_ELSEWHERE):
        raise TemplateSyntaxError("a template stands alone: it cannot load others", node.lineno)
    names = find_undeclared_variables(tree)
    environment.compile(template)
    return sorted(names)


def render(
    environment: ImmutableSandboxedEnvironment, compiled: CodeType, values: dict[str, Any], characters: int
) -> str:
    """Renders a compiled template.

    Raises:
        TooLong: It comes to more characters than it may.
        Exception: Whatever the template makes.
    """
    parts, length = [], 0
    template = Template.from_code(environment, compiled, environment.make_globals(None), None)
    for part in template.generate(values):
        length += len(part)
        if length > characters:
            raise TooLong
        parts.append(part)
    return "".join(parts)


def fault_of(error: Exception) -> dict[str, Any]:
    """Returns what is wrong with a template that raised this: `fault`, `message`, and `line` if it is known."""
    line = getattr(error, "lineno", None) or _line_of(error)
    match error:
        case TooLong():
            return _fault("TOO_LONG", "the template renders to more characters than it may")
        case NoText():
            return _fault("FAILED", str(error), line)
        case SecurityError():
            return _fault("FORBIDDEN", str(error), line)
        case UndefinedError():
            return _fault("UNDEFINED", str(error), line)
        case TemplateSyntaxError():
            return _fault("SYNTAX", str(error.message), line)
        case RecursionError():
            return _fault("TOO_COSTLY", "the template is nested too deep, or calls itself", line)
        case OverflowError():
            return _fault("TOO_COSTLY", str(error), line)
        case SyntaxError():
            return _fault("SYNTAX", f"the template cannot be compiled: {error.msg}")
        case _:
            return _fault("FAILED", f"{type(error).__name__}: {error}", line)


def _line_of(error: Exception) -> int | None:
    """The line of the template in which an error was raised."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _fault(fault: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"fault": fault, "message": message[:MESSAGE_CHARACTERS], "line": line}
