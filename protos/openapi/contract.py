"""Reads a descriptor set: types by name, their comments and their options."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    OneofDescriptor,
    ServiceDescriptor,
)

type Commented = (
    Descriptor
    | EnumDescriptor
    | EnumValueDescriptor
    | FieldDescriptor
    | MethodDescriptor
    | OneofDescriptor
    | ServiceDescriptor
)
type Options = Mapping[str, Any]


class ContractError(Exception):
    """The contract says something that the JSON dialect cannot express."""


class Contract:
    """The files of one descriptor set.

    The set is loaded into a pool of its own, so that reading it needs no generated module.

    Arguments:
        files: a descriptor set in dependency order, with source information if comments are wanted.
        package_prefix: what the packages of our own files begin with; others are only looked up.
    """

    def __init__(self, files: descriptor_pb2.FileDescriptorSet, package_prefix: str = "aiagent.") -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._comments: dict[str, str] = {}
        self._own: list[str] = []
        for file in files.file:
            self._pool.Add(file)
            if file.package.startswith(package_prefix):
                self._own.append(file.name)
                self._comments.update(_comments_of(file))

    def services(self) -> Iterator[ServiceDescriptor]:
        """Yields our services in the order of file and declaration."""
        for name in sorted(self._own):
            yield from self._pool.FindFileByName(name).services_by_name.values()

    def messages(self) -> Iterator[Descriptor]:
        """Yields our messages, nested ones after the one they are in; map entries are left out."""

        def walk(message: Descriptor) -> Iterator[Descriptor]:
            if message.GetOptions().map_entry:
                return
            yield message
            for nested in message.nested_types:
                yield from walk(nested)

        for name in sorted(self._own):
            for message in self._pool.FindFileByName(name).message_types_by_name.values():
                yield from walk(message)

    def enums(self) -> Iterator[EnumDescriptor]:
        """Yields our enums; all are nested in a message."""
        for message in self.messages():
            yield from message.enum_types

    def message(self, full_name: str) -> Descriptor:
        """Returns any message of the set, also one that was only imported.

        Raises KeyError if there is none.
        """
        return self._pool.FindMessageTypeByName(full_name)

    def comment(self, described: Commented) -> str:
        """Returns the comment before a declaration, without markers; empty if there is none."""
        return self._comments.get(_full_name(described), "")

    def options(self, described: Commented) -> Options:
        """Returns the options as plain values: extensions keyed by full name, 64-bit integers as str."""
        raw = described.GetOptions()
        # The default pool's class does not know extensions of files that were not imported as modules.
        known = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(raw.DESCRIPTOR.full_name))
        values = json_format.MessageToDict(
            known.FromString(raw.SerializeToString()),
            preserving_proto_field_name=True,
            descriptor_pool=self._pool,
        )
        return {key.strip("[]"): value for key, value in values.items()}

    def field_behavior(self, field: FieldDescriptor) -> Sequence[str]:
        """Returns the words of `google.api.field_behavior` on a field."""
        words: Sequence[str] = self.options(field).get("google.api.field_behavior", ())
        return words


def _full_name(described: Commented) -> str:
    if isinstance(described, EnumValueDescriptor):
        # Not protobuf's own name, whose scope is the enum's: two enums of a message may share a word.
        return f"{described.type.full_name}.{described.name}"
    return str(described.full_name)


def _comments_of(file: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    """Returns the leading comments of a file by the full name of what they describe."""
    names = dict(_names_of(file))
    comments: dict[str, str] = {}
    for location in file.source_code_info.location:
        name = names.get(tuple(location.path))
        if name is not None and location.leading_comments:
            comments[name] = "\n".join(
                line.strip() for line in location.leading_comments.splitlines()
            ).strip()
    return comments


def _names_of(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields path and full name of every declaration (the path as in google/protobuf/descriptor.proto)."""
    kind = descriptor_pb2.FileDescriptorProto
    for number, message in enumerate(file.message_type):
        path = (kind.MESSAGE_TYPE_FIELD_NUMBER, number)
        yield from _names_of_message(message, path, file.package)
    for number, enum in enumerate(file.enum_type):
        yield from _names_of_enum(enum, (kind.ENUM_TYPE_FIELD_NUMBER, number), file.package)
    for number, service in enumerate(file.service):
        path = (kind.SERVICE_FIELD_NUMBER, number)
        full_name = f"{file.package}.{service.name}"
        yield path, full_name
        for index, method in enumerate(service.method):
            method_path = (*path, descriptor_pb2.ServiceDescriptorProto.METHOD_FIELD_NUMBER, index)
            yield method_path, f"{full_name}.{method.name}"


def _names_of_message(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    kind = descriptor_pb2.DescriptorProto
    full_name = f"{scope}.{message.name}"
    yield path, full_name
    for number, field in enumerate(message.field):
        yield (*path, kind.FIELD_FIELD_NUMBER, number), f"{full_name}.{field.name}"
    for number, oneof in enumerate(message.oneof_decl):
        yield (*path, kind.ONEOF_DECL_FIELD_NUMBER, number), f"{full_name}.{oneof.name}"
    for number, nested in enumerate(message.nested_type):
        yield from _names_of_message(nested, (*path, kind.NESTED_TYPE_FIELD_NUMBER, number), full_name)
    for number, enum in enumerate(message.enum_type):
        yield from _names_of_enum(enum, (*path, kind.ENUM_TYPE_FIELD_NUMBER, number), full_name)


def _names_of_enum(
    enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    full_name = f"{scope}.{enum.name}"
    yield path, full_name
    for number, value in enumerate(enum.value):
        value_path = (*path, descriptor_pb2.EnumDescriptorProto.VALUE_FIELD_NUMBER, number)
        yield value_path, f"{full_name}.{value.name}"
