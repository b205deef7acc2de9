"""Which names the paths of the contract bind, for the filter that refuses them in the query."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

_SOURCE = Path(__file__).parent / "path_names.lua"
_VARIABLE = re.compile(r"\{([a-z_]+)\}")


def path_names(descriptors: Path) -> str:
    """The filter's source, with the templates of all methods before it.

    Args:
        descriptors: the contract as a serialized FileDescriptorSet.
    """
    contract = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    # The template with the fewest variables first: a fixed word is told from one that a variable would take.
    found = sorted(set(filter(None, _templates(contract))))
    found.sort(key=lambda template: len(_VARIABLE.findall(template)))
    lines = [
        f'  {{"{_pattern(template)}", {{{", ".join(f'"{name}"' for name in _VARIABLE.findall(template))}}}}},'
        for template in found
    ]
    return "\n".join(["local TEMPLATES = {", *lines, "}", _SOURCE.read_text(encoding="utf-8")])


def _templates(contract: descriptor_pb2.FileDescriptorSet) -> Iterator[str]:
    for file in contract.file:
        for service in file.service:
            for method in service.method:
                # The extension's stub names no type for its key.
                rule: http_pb2.HttpRule = method.options.Extensions[annotations_pb2.http]  # type: ignore[index]
                for binding in (rule, *rule.additional_bindings):
                    yield _path(binding)


def _path(rule: http_pb2.HttpRule) -> str:
    kind = rule.WhichOneof("pattern")
    return str(getattr(rule, kind)) if kind and kind != "custom" else ""


def _pattern(template: str) -> str:
    """A Lua pattern; a slash at the end matches too, as it does in the transcoder."""
    parts = re.split(r"(\{[a-z_]+\})", template)
    return (
        "^"
        + "".join(
            "[^/]+" if part.startswith("{") else re.sub(r"([^\w/])", r"%\1", part) for part in parts if part
        )
        + "/?$"
    )
