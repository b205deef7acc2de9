"""A small contract with everything the generator knows, compiled anew for each run."""

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from protos.openapi import build_document

THIRD_PARTY = Path(__file__).parents[3] / "protos" / "third_party"
LIBRARY = Path(__file__).with_name("library.proto")


def compile_proto(source: str, folder: Path) -> FileDescriptorSet:
    """Returns the descriptor set of one file, with imports and comments."""
    (folder / "library.proto").write_text(source, "utf-8")
    out = folder / "library.binpb"
    status = protoc.main(
        [
            "protoc",
            f"-I{folder}",
            f"-I{THIRD_PARTY}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            "library.proto",
        ]
    )
    assert status == 0
    return FileDescriptorSet.FromString(out.read_bytes())


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    return compile_proto(LIBRARY.read_text("utf-8"), tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def document(library: FileDescriptorSet) -> dict[str, Any]:
    return build_document(library)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str], FileDescriptorSet]:
    """Compiles the contract with a pattern of it replaced."""

    def change(pattern: str, replacement: str) -> FileDescriptorSet:
        source, count = re.subn(pattern, replacement, LIBRARY.read_text("utf-8"), count=1)
        assert count == 1
        return compile_proto(source, tmp_path)

    return change
