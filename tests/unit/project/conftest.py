"""The contract, compiled from its sources."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos.openapi.contract import Contract

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    image = tmp_path_factory.mktemp("contract") / "image.binpb"
    buf = Path(sys.executable).with_name("buf")
    subprocess.run(
        [buf, "build", "--as-file-descriptor-set", "--output", image], cwd=ROOT, check=True, timeout=60
    )
    return Contract(FileDescriptorSet.FromString(image.read_bytes()))
