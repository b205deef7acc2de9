"""OpenAPI 3.1 from protobuf descriptors.

The input is a descriptor set with comments; the output describes the JSON dialect that Envoy's transcoder
speaks with the settings of docs/decisions/0031-json-dialect.md. What is read:

- `google.api.http` for paths, `google.api.field_behavior` for required and read-only fields (AIP-203);
- `buf.validate` rules for the limits of fields;
- comments for summaries, descriptions, errors and examples.

Generators that exist are compiled Go programs, or describe Swagger 2 or the Connect protocol; see
docs/decisions/0032-openapi-generator.md.
"""

from protos.openapi.document import build_document, render

__all__ = ["build_document", "render"]
