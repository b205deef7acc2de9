"""RPCs with `google.api.http` as OpenAPI operations (google/api/http.proto has the rules)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from protos.openapi.comments import Comment, parse
from protos.openapi.contract import Contract, ContractError
from protos.openapi.errors import Reasons, responses
from protos.openapi.rules import Schema
from protos.openapi.schemas import HTTP_BODY, Schemas

_VERBS = ("get", "put", "post", "delete", "patch")
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)(?:=[^}]*)?\}")
_NOT_IN_A_QUERY = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
_ONE_VALUE = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"})

# The sentence by which the contract says that a method is open to everyone.
PUBLIC_SENTENCE = "Needs no token."


@dataclass(frozen=True)
class Binding:
    """One way to reach a method over HTTP.

    Attributes:
        verb: in lower case.
        path: as OpenAPI writes it, with `{field}` for a variable.
        variables: the fields of the request that the path holds.
        body: the field that is the body, `*` for all that the path does not hold, empty for none.
        response_body: the field of the response that is the body; empty for all of it.
    """

    verb: str
    path: str
    variables: tuple[str, ...]
    body: str
    response_body: str


def bindings(rule: Mapping[str, Any]) -> Iterator[Binding]:
    """Yields the bindings of an HTTP rule, the main one first.

    Raises ContractError for a custom verb.
    """
    verb = next((verb for verb in _VERBS if verb in rule), None)
    if verb is None:
        raise ContractError(f"no verb of {', '.join(_VERBS)} in {rule}")
    template = str(rule[verb])
    yield Binding(
        verb=verb,
        path=_VARIABLE.sub(r"{\1}", template),
        variables=tuple(_VARIABLE.findall(template)),
        body=rule.get("body", ""),
        response_body=rule.get("response_body", ""),
    )
    for additional in rule.get("additional_bindings", ()):
        yield from bindings(additional)


class Operations:
    """Builds the operations of a contract."""

    def __init__(self, contract: Contract, schemas: Schemas) -> None:
        self._contract = contract
        self._schemas = schemas
        self._reasons = Reasons(contract)

    def of(self, method: MethodDescriptor) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yields path, verb and operation object for every HTTP binding of a method."""
        rule = self._contract.options(method).get("google.api.http")
        if not rule:
            return
        for number, binding in enumerate(bindings(rule), start=1):
            yield binding.path, binding.verb, self._operation(method, binding, number)

    def _operation(self, method: MethodDescriptor, binding: Binding, number: int) -> dict[str, Any]:
        service = method.containing_service
        comment = parse(self._contract.comment(method))
        public = PUBLIC_SENTENCE in comment.description.replace("\n", " ")
        suffix = "" if number == 1 else f"_{number}"
        operation: dict[str, Any] = {
            "tags": [tag_of(service.name)],
            "operationId": f"{service.name}_{method.name}{suffix}",
            "summary": comment.summary,
            "description": comment.description,
        }
        parameters = list(self._parameters(method.input_type, binding))
        if parameters:
            operation["parameters"] = parameters
        if binding.body:
            operation["requestBody"] = self._request_body(method.input_type, binding)
        errors = self._errors(method, binding, comment)
        operation["responses"] = {
            "200": self._success(method, binding),
            **dict(responses(errors, self._reasons.of(service), public=public)),
        }
        if public:
            operation["security"] = []
        if method.GetOptions().deprecated:
            operation["deprecated"] = True
        return operation

    def _errors(self, method: MethodDescriptor, binding: Binding, comment: Comment) -> list[tuple[str, str]]:
        """Returns what the method's comment names, and what its service's comment says of all its methods."""
        errors = list(comment.errors)
        service = parse("Errors: " + self._contract.comment(method.containing_service).replace("\n", " "))
        for status, reason in service.errors:
            applies = {"NOT_FOUND": bool(binding.variables), "PERMISSION_DENIED": binding.verb != "get"}
            if reason and applies.get(status, True):
                errors.append((status, reason))
        if method.input_type.fields:
            errors.append(("INVALID_ARGUMENT", "INVALID_REQUEST"))
        return errors

    def _parameters(self, request: Descriptor, binding: Binding) -> Iterator[dict[str, Any]]:
        for name in binding.variables:
            yield _parameter("path", name, self._schemas.field(_field_at(request, name)), required=True)
        if binding.body == "*":
            return
        for field in request.fields:
            if field.name != binding.body:
                yield from self._query(field, field.name, binding.variables)

    def _query(
        self, field: FieldDescriptor, name: str, variables: tuple[str, ...]
    ) -> Iterator[dict[str, Any]]:
        if name in variables:
            return
        message = field.message_type
        if message is not None and message.full_name not in _ONE_VALUE:
            if field.is_repeated or message.full_name in _NOT_IN_A_QUERY:
                return
            for inner in message.fields:
                yield from self._query(inner, f"{name}.{inner.name}", variables)
            return
        # What a nested message requires is required only if anything of the message is sent.
        required = "." not in name and self._schemas.is_required(field)
        yield _parameter("query", name, self._schemas.field(field), required=required)

    def _request_body(self, request: Descriptor, binding: Binding) -> dict[str, Any]:
        if binding.body != "*":
            field = request.fields_by_name[binding.body]
            schema = self._schemas.field(field)
            return {"required": True, "content": self._content(field.message_type, schema)}
        schema = (
            self._schemas.object(request, without=binding.variables)
            if binding.variables
            else self._schemas.reference(request)
        )
        return {"required": True, "content": {"application/json": {"schema": schema}}}

    def _success(self, method: MethodDescriptor, binding: Binding) -> dict[str, Any]:
        response = method.output_type
        if binding.response_body:
            field = response.fields_by_name[binding.response_body]
            described = parse(self._contract.comment(field)).description
            return {
                "description": described or "OK.",
                "content": self._content(field.message_type, self._schemas.field(field)),
            }
        described = parse(self._contract.comment(response)).description or "OK."
        if method.server_streaming and response.full_name != HTTP_BODY:
            described = (
                "A stream of JSON objects, one on each line, as they come. An error after the first ends "
                f"the stream without a word in the body: resume it.\n\n{described}"
            )
        content = self._content(response, self._schemas.reference(response))
        return {"description": described, "content": content}

    def _content(self, message: Descriptor | None, schema: Schema) -> dict[str, Any]:
        if message is not None and message.full_name == HTTP_BODY:
            return {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        return {"application/json": {"schema": schema}}


def tag_of(service_name: str) -> str:
    """Returns the heading under which a service's operations stand."""
    return service_name.removesuffix("Service")


def _field_at(message: Descriptor, path: str) -> FieldDescriptor:
    first, _, rest = path.partition(".")
    field = message.fields_by_name[first]
    if not rest:
        return field
    if field.message_type is None:
        raise ContractError(f"{path}: {field.full_name} is not a message")
    return _field_at(field.message_type, rest)


def _parameter(place: str, name: str, schema: Schema, *, required: bool) -> dict[str, Any]:
    described = dict(schema)
    description = described.pop("description", "")
    described.pop("readOnly", None)
    parameter: dict[str, Any] = {"name": name, "in": place}
    if description:
        parameter["description"] = description
    if required:
        parameter["required"] = True
    parameter["schema"] = described
    return parameter
