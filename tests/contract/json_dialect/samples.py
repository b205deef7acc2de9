"""Messages in which everything is set."""

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

UUID = "0198c7a0-5d1e-7c3a-9f00-3b1d2e4f5a6b"

# Texts that the rules of every field of their name accept.
_TEXTS = {
    "email": "ada@example.org",
    "url": "https://example.org/mcp",
    "update_mask": "name",
}
# What the rules of one field accept.
_VALUES: dict[str, object] = {
    "aiagent.scheduler.v1.TaskVariable.name": "a_name",
    "aiagent.scheduler.v1.RetryPolicy.backoff_coefficient": 1.5,
    "aiagent.scheduler.v1.RetryPolicy.non_retryable_reasons": "A_REASON",
    "aiagent.scheduler.v1.Webhook.states": 4,
}
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: 7,
    FieldDescriptor.CPPTYPE_INT64: 2**53 + 1,
    FieldDescriptor.CPPTYPE_UINT32: 7,
    FieldDescriptor.CPPTYPE_UINT64: 2**53 + 1,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.25,
    FieldDescriptor.CPPTYPE_FLOAT: 0.25,
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_ENUM: 1,
}


def sample(descriptor: Descriptor, depth: int = 6) -> Message:
    """Returns a message with every field set, the first of each oneof, and one entry in each list and map."""
    message = message_factory.GetMessageClass(descriptor)()
    match descriptor.full_name:
        case "google.protobuf.Timestamp":
            message.FromJsonString("2026-01-02T03:04:05.678Z")
        case "google.protobuf.Duration":
            message.FromJsonString("90.500s")
        case "google.protobuf.FieldMask":
            message.paths.extend(["name", "sdk_options"])
        case "google.protobuf.Struct":
            message.update({"type": "object", "limits": [1, 2.5, None, True]})
        case "google.protobuf.Value":
            message.struct_value.update({"list": [1, 2.5, None, True]})
        case "google.api.HttpBody":
            message.content_type = "application/octet-stream"
            message.data = bytes(range(256))
        case _:
            chosen = {oneof.fields[0].name for oneof in descriptor.oneofs}
            for field in descriptor.fields:
                if field.containing_oneof is None or field.name in chosen:
                    _fill(message, field, depth)
    return message


def _fill(message: Message, field: FieldDescriptor, depth: int) -> None:
    inner = field.message_type
    if inner is not None and depth == 0:
        return
    if inner is not None and inner.GetOptions().map_entry:
        entries = getattr(message, field.name)
        value = inner.fields_by_name["value"]
        if value.message_type is not None:
            entries["first"].CopyFrom(sample(value.message_type, depth - 1))
        else:
            entries["first"] = _scalar(value)
    elif field.is_repeated:
        items = getattr(message, field.name)
        items.append(sample(inner, depth - 1) if inner is not None else _scalar(field))
    elif inner is not None:
        getattr(message, field.name).CopyFrom(sample(inner, depth - 1))
    else:
        setattr(message, field.name, _scalar(field))


def _scalar(field: FieldDescriptor) -> object:
    if field.full_name in _VALUES:
        return _VALUES[field.full_name]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\x00\xff"
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return _NUMBERS[field.cpp_type]
    if field.name == "id" or (field.name.endswith(("_id", "_by")) and field.name != "request_id"):
        return UUID
    return _TEXTS.get(field.name, "a-text_1")
