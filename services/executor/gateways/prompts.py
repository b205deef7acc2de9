"""What an agent is told when a turn begins or goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

from services.executor.usecases.ports import TurnRequest

_TOLD_CHARACTERS = 2000
_RESUMED = (
    "[The work on the last message was interrupted by a fault of the machine, not by the user. Look at what is done, "
    "and go on where it stopped.{notes}]"
)


def prompt(request: TurnRequest, *, known: bool, answered: Callable[[str], bool]) -> tuple[str, str]:
    """The message to send, with its id: the user's own, unless the conversation has it already.

    Args:
        request: The turn.
        known: Whether the conversation has the user's message.
        answered: Whether it has the result of a tool call.
    """
    notes = "".join(
        [
            *(
                f"\nThe call {name} with the input {_short(text)} has been made; the conversation has lost this. "
                f"Do not repeat it. Its result: {result}"
                for tool_use_id, name, text, result in request.finished_calls
                if not answered(tool_use_id)
            ),
            *(
                # Whole, when it is allowed: an answer is for the identical call.
                f"\nA person has decided on the call {name} with the input {text}: it is allowed. Make exactly this "
                "call again."
                if allowed
                else f"\nA person has decided on the call {name} with the input {_short(text)}: it is not allowed "
                f"({reason}). Do not repeat it."
                for name, text, allowed, reason in request.earlier_decisions
            ),
            *(
                f"\nThe call {name} with the input {_short(text)} possibly ran, wholly or in part; look before "
                "repeating it."
                for name, text in request.possibly_run
            ),
        ]
    )
    if known:
        return _RESUMED.format(notes=notes), str(uuid4())
    return _plain(request.prompt) + (f"\n\n[{notes.strip()}]" if notes else ""), str(request.prompt_id)


def _plain(message: str) -> str:
    """Keeps the CLI from taking a message for a command of its own, such as `/clear` or `/model`.

    A command changes the agent behind the log: its memory, its model, what it costs. The CLI looks at the very first
    character only.
    """
    return f"\n{message}" if message.startswith("/") else message


def _short(text: str) -> str:
    return text[:_TOLD_CHARACTERS]


async def one_message(text: str, message_id: str, session_id: str) -> AsyncIterator[dict[str, Any]]:
    """A message as the CLI reads it: with an id of its own, by which its result is known."""
    yield {
        "type": "user",
        "message": {"role": "user", "content": text},
        "parent_tool_use_id": None,
        "uuid": message_id,
        "session_id": session_id,
    }
