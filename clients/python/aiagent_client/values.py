"""Values of variables: what JSON can hold, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from aiagent_client.errors import InvalidValueError


def struct_of(values: Mapping[str, Any], field: str) -> Struct:
    """Returns values by name as a message.

    Args:
        values: What JSON can hold, by name.
        field: Of the request, for errors.

    Raises:
        InvalidValueError: One of them is nothing that JSON can hold.
    """
    made = Struct()
    for name, value in values.items():
        path = f"{field}.{name}"
        try:
            made[name] = value
        except UnicodeError as error:
            shown = path.encode(errors="backslashreplace").decode()
            raise InvalidValueError(shown, "holds a lone surrogate, which no text may") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(path, f"is nothing that JSON can hold: {type(value).__name__}") from error
    return made
