"""The prompt of a task with values for its variables, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.kernel.errors import FieldViolation
from services.scheduler.domain.entities import Task
from services.scheduler.domain.runs import RunContent
from services.scheduler.domain.templates import Renderer, TemplateError
from services.scheduler.domain.variables import read_values, unstorable
from services.scheduler.domain.violations import refuse


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a run of a task does, for as long as the task has this version."""

    task_id: UUID
    version: int
    content: RunContent


class Unrendered(Exception):
    """The task is not the one whose prompt was rendered; nothing was changed."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task


async def render(renderer: Renderer, task: Task, variables: Mapping[str, Any]) -> Rendered:
    """Renders a task's prompt. Not to be called within a transaction: it may take seconds, and connections are few.

    Args:
        renderer: renders templates.
        task: the task.
        variables: values by name, as JSON.

    Raises:
        ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, and a violation for each variable at fault (see
            `read_values`) or for a prompt that cannot be rendered with them (the reasons of `TemplateFault`, and
            EMPTY); UNAVAILABLE with RENDERER_UNAVAILABLE.
    """
    content = task.content
    values = read_values(content.variables, variables)
    try:
        prompt = await renderer.render(content.prompt_template, values)
    except TemplateError as error:
        description = f"the prompt cannot be rendered: {error}"
        raise refuse([FieldViolation("variables", description, error.fault.value)]) from None
    fault = unstorable(prompt)
    if fault is not None:
        raise refuse([FieldViolation("variables", f"the prompt {fault}", "FAILED")])
    if not prompt.strip():
        raise refuse([FieldViolation("variables", "make an empty prompt", "EMPTY")])
    return Rendered(task.id, task.version, RunContent.of(content, values, prompt))
