"""Messages and enums as JSON schemas, in the form the transcoder reads and writes them."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor

from protos.openapi import rules
from protos.openapi.comments import parse
from protos.openapi.contract import Contract, ContractError
from protos.openapi.rules import Schema

HTTP_BODY = "google.api.HttpBody"

_BINARY: Schema = {"type": "string", "format": "binary"}

# https://protobuf.dev/programming-guides/json/
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_FIXED64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "minimum": 0, "maximum": 4294967295},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 4294967295},
    FieldDescriptor.TYPE_SFIXED32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SFIXED64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_SINT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SINT64: {"type": "string", "format": "int64"},
}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$",
        "examples": ["3.5s"],
    },
    "google.protobuf.FieldMask": {"type": "string", "description": "Names of fields, separated by commas."},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
        "additionalProperties": True,
    },
    HTTP_BODY: _BINARY,
}


class Schemas:
    """The schemas of a document: hands out references and collects what they refer to.

    A component is called like its message, without the package: `Session`, `Session.Mode`. Generated clients
    see the names, so two messages of one name are an error rather than a reason to rename.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._named: dict[str, Descriptor | EnumDescriptor] = {}
        self._queue: deque[str] = deque()

    def components(self) -> dict[str, Schema]:
        """Returns every schema referred to so far, and those they refer to, by name."""
        done: dict[str, Schema] = {}
        while self._queue:
            name = self._queue.popleft()
            described = self._named[name]
            if isinstance(described, EnumDescriptor):
                done[name] = self._enum(described)
            else:
                done[name] = self.object(described)
        return dict(sorted(done.items()))

    def reference(self, described: Descriptor | EnumDescriptor) -> Schema:
        """Returns a reference to a type's schema, or the schema itself of a well-known type.

        Raises ContractError when another type has the same name.
        """
        if described.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[described.full_name])
        name = _component_name(described)
        if name not in self._named:
            self._named[name] = described
            self._queue.append(name)
        elif (known := self._named[name].full_name) != described.full_name:
            raise ContractError(f"{known} and {described.full_name} would both be called {name}")
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, message: Descriptor, without: Iterable[str] = ()) -> Schema:
        """Returns the schema of a message, without the named fields."""
        left_out = frozenset(without)
        fields = [field for field in message.fields if field.name not in left_out]
        comment = parse(self._contract.comment(message))
        notes = [comment.description] if comment.description else []
        notes += [f"Rule: {rule['message']}." for rule in self._message_rules(message) if rule.get("message")]
        schema: Schema = {"type": "object"}
        alternatives: list[Schema] = []
        for oneof in message.oneofs:
            members = [field.name for field in oneof.fields if field.name not in left_out]
            if len(members) < 2:
                continue
            if self._is_required(oneof):
                alternatives.append({"oneOf": [{"title": name, "required": [name]} for name in members]})
            else:
                notes.append(f"At most one of {_listed(members)} is set.")
        if notes:
            schema["description"] = "\n\n".join(notes)
        if fields:
            schema["properties"] = {field.name: self.field(field) for field in fields}
        required = [field.name for field in fields if self.is_required(field)]
        if required:
            schema["required"] = required
        if len(alternatives) == 1:
            schema |= alternatives[0]
        elif alternatives:
            schema["allOf"] = alternatives
        if comment.examples:
            schema["examples"] = list(comment.examples)
        return schema

    def field(self, field: FieldDescriptor) -> Schema:
        """Returns the schema of a field's value, with its comment and its rules."""
        found = self._rules(field)
        schema = self._shape(field, found)
        comment = parse(self._contract.comment(field))
        if comment.description:
            schema["description"] = comment.description
        if comment.examples:
            schema["examples"] = list(comment.examples)
        behavior = self._contract.field_behavior(field)
        if "OUTPUT_ONLY" in behavior:
            schema["readOnly"] = True
        if "INPUT_ONLY" in behavior:
            schema["writeOnly"] = True
        if field.GetOptions().deprecated:
            schema["deprecated"] = True
        return schema

    def is_required(self, field: FieldDescriptor) -> bool:
        """Returns whether a request without the field is refused."""
        return "REQUIRED" in self._contract.field_behavior(field) or rules.refuses_absence(
            self._rules(field), has_presence=field.has_presence
        )

    def _shape(self, field: FieldDescriptor, found: Mapping[str, Any]) -> Schema:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            entries = self._single(value, found.get("map", {}).get("values", {}))
            return {"type": "object", "additionalProperties": entries} | rules.keywords(found)
        if field.is_repeated:
            items = self._single(field, found.get("repeated", {}).get("items", {}))
            return {"type": "array", "items": items} | rules.keywords(found)
        return self._single(field, found)

    def _single(self, field: FieldDescriptor, found: Mapping[str, Any]) -> Schema:
        if field.enum_type is not None:
            return self._enum_value(field.enum_type, found.get("enum", {}))
        if field.message_type is not None:
            return self.reference(field.message_type)
        return dict(_SCALARS[field.type]) | rules.keywords(found)

    def _enum_value(self, enum: EnumDescriptor, rule: Mapping[str, Any]) -> Schema:
        if not rule.get("in") and not rule.get("not_in"):
            return self.reference(enum)
        allowed = rule.get("in") or [value.number for value in enum.values]
        words = [
            value.name
            for value in enum.values
            if value.number in allowed and value.number not in rule.get("not_in", ())
        ]
        return {"type": "string", "enum": words}

    def _enum(self, enum: EnumDescriptor) -> Schema:
        lines = [self._contract.comment(enum), "Accepted in any case; sent in upper case."]
        for value in enum.values:
            meaning = parse(self._contract.comment(value)).description.replace("\n", " ")
            lines.append(f"- `{value.name}`: {meaning}" if meaning else f"- `{value.name}`")
        described = "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])
        return {
            "type": "string",
            "description": described.strip(),
            "enum": [value.name for value in enum.values],
        }

    def _rules(self, field: FieldDescriptor) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._contract.options(field).get("buf.validate.field", {})
        return found

    def _message_rules(self, message: Descriptor) -> Iterable[Mapping[str, Any]]:
        found: Iterable[Mapping[str, Any]] = (
            self._contract.options(message).get("buf.validate.message", {}).get("cel", ())
        )
        return found

    def _is_required(self, oneof: OneofDescriptor) -> bool:
        return bool(self._contract.options(oneof).get("buf.validate.oneof", {}).get("required"))


def _component_name(described: Descriptor | EnumDescriptor) -> str:
    return str(described.full_name).removeprefix(f"{described.file.package}.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
