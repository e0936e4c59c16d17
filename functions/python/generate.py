#!/usr/bin/env python3
"""Generates src/edgeless_function/_wire from ../../proto.

    python generate.py            writes the modules
    python generate.py --check    writes nothing; exit code 1 if they are not what would be written

Only what a guest needs is taken: GuestAPIFunction, GuestAPIHost and the messages that these use, joined in one
file. So a change elsewhere in proto/ changes nothing here, and the file has a name of its own in protobuf's
registry, which every library of the process shares. Needs the grpcio-tools that pyproject.toml names: another
version may write other text.
"""

from __future__ import annotations

import importlib.resources
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
PACKAGE = "edgeless_function/_wire"
SERVICES = ("GuestAPIFunction", "GuestAPIHost")


def main() -> int:
    """Writes or checks the modules, and returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        written = sorted((Path(folder) / PACKAGE).iterdir())
        stale = [file for file in written if not _same(file, HERE / "src" / PACKAGE / file.name)]
        for file in stale:
            if "--check" in sys.argv[1:]:
                print(f"{file.name} is not what proto/ says: run {Path(__file__).name}", file=sys.stderr)
            else:
                (HERE / "src" / PACKAGE / file.name).write_bytes(file.read_bytes())
        return 1 if stale and "--check" in sys.argv[1:] else 0


def generate(folder: Path) -> None:
    """Writes the modules into a folder."""
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    all_of_it = folder / "all.binpb"
    _protoc(f"--proto_path={PROTO}", f"--proto_path={well_known}", "--include_imports",
            f"--descriptor_set_out={all_of_it}", "guest.proto")

    files = descriptor_pb2.FileDescriptorSet.FromString(all_of_it.read_bytes())
    needed = descriptor_pb2.FileDescriptorSet(file=[file for file in files.file if file.package == "google.protobuf"])
    needed.file.append(joined(file for file in files.file if file.package == "edgeless_api"))
    only_guest = folder / "guest.binpb"
    only_guest.write_bytes(needed.SerializeToString(deterministic=True))
    _protoc(f"--descriptor_set_in={only_guest}", f"--python_out={folder}", f"--pyi_out={folder}",
            f"{PACKAGE}/guest.proto")


def joined(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> descriptor_pb2.FileDescriptorProto:
    """The services of a guest, and the messages and enums that they use, as one file."""
    files = list(files)
    services = [service for file in files for service in file.service if service.name in SERVICES]
    messages = {f".{file.package}.{message.name}": message for file in files for message in file.message_type}
    enums = {f".{file.package}.{enum.name}": enum for file in files for enum in file.enum_type}

    used: set[str] = set()
    methods = [method for service in services for method in service.method]
    pending = [name for method in methods for name in (method.input_type, method.output_type)]
    while pending:
        name = pending.pop()
        if name not in used:
            used.add(name)
            fields = messages[name].field if name in messages else ()
            pending += [field.type_name for field in fields if field.type_name]

    return descriptor_pb2.FileDescriptorProto(
        name=f"{PACKAGE}/guest.proto",
        package="edgeless_api",
        syntax="proto3",
        dependency=["google/protobuf/empty.proto"],
        message_type=[message for name, message in messages.items() if name in used],
        enum_type=[enum for name, enum in enums.items() if name in used],
        service=services,
    )


def _protoc(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc failed")


def _same(file: Path, other: Path) -> bool:
    return other.exists() and other.read_bytes() == file.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
