"""Generates everything under protos/gen from the contracts: `python -m protos.generate [--check]`.

Works without a network, and twice the same input gives the same bytes. What is made:

- `gen/python`: messages, gRPC stubs, and typed `.pyi` for both;
- `gen/descriptors.binpb`: the descriptor set for Envoy's JSON transcoder, imports and error details included;
- `gen/openapi.json`: the JSON dialect of the API as OpenAPI.

With `--check` nothing is written; the command fails when the committed files are not what would be generated.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos.openapi.document import build_document, render

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "protos" / "gen"

# What Python is made for. Of the vendored files only buf.validate is generated too: google.api and google.rpc
# come with googleapis-common-protos, while no Python package has a `buf.validate.validate_pb2`.
GENERATED_PATHS = ("protos/aiagent", "protos/third_party/buf")

# Envoy's transcoder turns `grpc-status-details-bin` into JSON only if it finds these in the descriptor set.
DETAIL_FILES = ("google/rpc/status.proto", "google/rpc/error_details.proto")


class GenerationError(Exception):
    """A tool failed; its own message was printed."""


def run(*command: str) -> None:
    """Runs a tool of this environment in the repository's root.

    Raises GenerationError when it fails.
    """
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # buf neither asks the registry nor keeps a cache in the user's home for a workspace without dependencies;
    # plugins are imported from the root.
    environment["PYTHONPATH"] = str(ROOT)
    tool = shutil.which(command[0], path=environment["PATH"])
    if tool is None:
        raise GenerationError(f"{command[0]} is not installed in this environment")
    if subprocess.run([tool, *command[1:]], cwd=ROOT, env=environment, check=False).returncode != 0:
        raise GenerationError(f"{' '.join(command[:2])} failed")


def generate(out: Path) -> None:
    """Generates into the empty folder `out`.

    Raises GenerationError when a tool fails.
    """
    selected = [argument for path in GENERATED_PATHS for argument in ("--path", path)]
    run("buf", "generate", "--output", str(out), *selected)
    # protoc-gen-mypy_grpc writes a stub for every file, also where there is no service to describe.
    for stub in (out / "python").rglob("*_pb2_grpc.pyi"):
        if not stub.with_suffix(".py").exists():
            stub.unlink()
    for package in (path for path in (out / "python").iterdir() if path.is_dir()):
        (package / "py.typed").touch()

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.binpb")
        run("buf", "build", "--as-file-descriptor-set", "--output", str(image))
        descriptors = FileDescriptorSet.FromString(image.read_bytes())
    (out / "openapi.json").write_text(render(build_document(descriptors)), "utf-8")
    transcoding = for_transcoding(descriptors).SerializeToString(deterministic=True)
    (out / "descriptors.binpb").write_bytes(transcoding)


def for_transcoding(descriptors: FileDescriptorSet) -> FileDescriptorSet:
    """Returns our files, all they import and the error details, in dependency order and without comments."""
    files = {file.name: file for file in descriptors.file}
    kept = FileDescriptorSet()
    seen: set[str] = set()

    def keep(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for dependency in files[name].dependency:
            keep(dependency)
        copy = kept.file.add()
        copy.CopyFrom(files[name])
        copy.ClearField("source_code_info")

    for name in (*sorted(name for name in files if name.startswith("aiagent/")), *DETAIL_FILES):
        keep(name)
    return kept


def differences(expected: Path, actual: Path) -> list[str]:
    """Returns the paths, relative to the two folders, of files that differ or are in one of them only."""

    def contents(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

    left, right = contents(expected), contents(actual)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def replace(source: Path, target: Path) -> None:
    """Makes `target` hold what `source` holds, writing only what changed so that file watchers stay calm."""
    for name in differences(source, target):
        wanted, present = source / name, target / name
        if wanted.exists():
            present.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: a process that imports the stubs meanwhile never reads half a file.
            part = present.with_name(f".{present.name}.part")
            part.write_bytes(wanted.read_bytes())
            part.replace(present)
        else:
            present.unlink()


def main() -> int:
    """Generates or checks; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m protos.generate",
        description="Generates everything under protos/gen from the contracts.",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail if protos/gen is out of date"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            generate(out)
        except GenerationError as error:
            print(f"protos.generate: {error}", file=sys.stderr)
            return 1
        changed = differences(out, GENERATED)
        if not arguments.check:
            replace(out, GENERATED)
            print(f"protos/gen: {len(changed)} files changed" if changed else "protos/gen: up to date")
            return 0
    for name in changed:
        print(f"protos/gen/{name} is not what the contracts generate", file=sys.stderr)
    if changed:
        print("run `make proto` and commit the result", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
