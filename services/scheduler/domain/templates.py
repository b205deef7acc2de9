"""Prompt templates, and what renders them.

A template is Jinja2. What it contains is anybody's, and a sandbox bounds what it reaches but not what it costs, nor
what it costs to read: constants are worked out while it is compiled. So nothing here looks into a template: a
`Renderer` does, which keeps to bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Protocol

from services.kernel.errors import FieldViolation
from services.scheduler.domain.variables import Variable, check_declarations, unstorable
from services.scheduler.domain.violations import refuse

MAX_TEMPLATE_CHARACTERS: Final = 64 * 1024
MAX_RENDERED_CHARACTERS: Final = 256 * 1024
"""Four bytes at most to each: a prompt is a message, and those have at most 1 MiB."""
_TAGS = ("{{", "{%", "{#")


class TemplateFault(StrEnum):
    """What is wrong with a template or with its rendering."""

    SYNTAX = "SYNTAX"
    """It is no Jinja2, or uses what is not there: a filter, a test, another template."""
    UNDEFINED = "UNDEFINED"
    """It uses a variable, an attribute or an element that has no value."""
    FORBIDDEN = "FORBIDDEN"
    """It reaches for what the sandbox does not give."""
    FAILED = "FAILED"
    """It fails while it is rendered: a division by zero, a text plus a number."""
    TOO_LONG = "TOO_LONG"
    """What it renders to is longer than a prompt may be."""
    TOO_COSTLY = "TOO_COSTLY"
    """It takes more time or memory than a template is given."""


class TemplateError(Exception):
    """A template that cannot be read or rendered.

    Attributes:
        fault: What kind of fault it is.
        line: Line of the template, from 1; None if it is not known.
        message: What is wrong, for a person.
    """

    def __init__(self, fault: TemplateFault, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.fault = fault
        self.message = message
        self.line = line


class Renderer(Protocol):
    """Reads and renders templates within bounds of time, memory and length, whatever they contain."""

    async def names_in(self, template: str) -> frozenset[str]:
        """The variables that a template takes from outside.

        Raises:
            TemplateError: It is no template, or too costly to read.
            ServiceError: UNAVAILABLE, if nothing can be rendered at the moment.
        """
        ...

    async def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Renders a template.

        Args:
            template: the template.
            values: the variables by name: JSON values.

        Raises:
            TemplateError: It cannot be rendered.
            ServiceError: UNAVAILABLE, if nothing can be rendered at the moment.
        """
        ...


def is_plain(template: str) -> bool:
    """Whether a template has no tags: it renders to itself, and its line ends to `\\n`."""
    return not any(tag in template for tag in _TAGS)


async def check_template(
    template: str,
    variables: Sequence[Variable],
    renderer: Renderer,
    *,
    template_path: str = "prompt_template",
    variables_path: str = "variables",
) -> None:
    """Checks a template and the variables that are declared for it.

    Args:
        template: the template.
        variables: its variables.
        renderer: what reads it.
        template_path: name of the template's field in violations.
        variables_path: name of the variables' field in violations.

    Raises:
        ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, and a violation for each fault. Their reasons: those of
            `TemplateFault` on the template, UNDECLARED on the template for each variable that it uses and nobody has
            declared; NAME, DUPLICATE, WRONG_TYPE, TOO_LARGE and TOO_MANY on the variables. Or UNAVAILABLE.
    """
    found = check_declarations(variables, variables_path)
    if not template.strip():
        found.append(FieldViolation(template_path, "must not be empty", "REQUIRED"))
    elif len(template) > MAX_TEMPLATE_CHARACTERS:
        description = f"must have at most {MAX_TEMPLATE_CHARACTERS} characters"
        found.append(FieldViolation(template_path, description, "TOO_LONG"))
    elif (fault := unstorable(template)) is not None:
        found.append(FieldViolation(template_path, fault, "SYNTAX"))
    else:
        declared = {variable.name for variable in variables}
        try:
            found += [
                FieldViolation(template_path, f"uses {name}, which is not declared", "UNDECLARED")
                for name in sorted(await renderer.names_in(template) - declared)
            ]
        except TemplateError as error:
            found.append(FieldViolation(template_path, str(error), error.fault.value))
    if found:
        raise refuse(found)
