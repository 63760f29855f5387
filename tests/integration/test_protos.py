"""Others can use the protos: `protos/` holds all that a client is made from, and no network is needed."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from orchestrator import v1

ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests/node"
BUF = Path(sys.executable).with_name("buf")
VENDORED = sorted((ROOT / "protos/google").rglob("*.proto"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy buf's configuration and the protos into a folder of their own."""
    folder = tmp_path / "copy"
    shutil.copytree(ROOT / "protos", folder / "protos")
    for name in ("buf.yaml", "buf.gen.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints that has no home, no cache and no network; it must succeed."""
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_buf_builds_and_lints_a_copy_of_the_protos_alone(copy: Path) -> None:
    run(copy, BUF, "build", "--output", "image.binpb")
    files = FileDescriptorSet.FromString((copy / "image.binpb").read_bytes()).file
    assert {"orchestrator/v1/orchestrator.proto", "google/api/annotations.proto"} <= {
        file.name for file in files
    }
    run(copy, BUF, "lint")
    run(copy, BUF, "breaking", "--against", "protos/released.binpb")


def test_protoc_needs_no_other_folder(copy: Path) -> None:
    sources = [
        str(file.relative_to(copy / "protos")) for file in (copy / "protos/orchestrator").rglob("*.proto")
    ]
    run(
        copy,
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-Iprotos",
        "--descriptor_set_out=set.binpb",
        *sources,
    )
    assert len(FileDescriptorSet.FromString((copy / "set.binpb").read_bytes()).file) == len(sources)


def test_nodes_proto_loader_needs_no_other_folder(copy: Path) -> None:
    script = (
        f"const {{ loadSync }} = require('{NODE}/node_modules/@grpc/proto-loader');"
        "const names = ['orchestrator/v1/orchestrator.proto', 'google/rpc/error_details.proto'];"
        "const found = loadSync(names, { includeDirs: ['protos'] });"
        "console.log(Object.keys(found['orchestrator.v1.Orchestrator']).join(' '));"
    )
    methods = run(copy, "node", "--eval", script).split()
    assert {"CreateInstance", "StreamEvents", "GetResult"} <= set(methods)


@pytest.mark.parametrize("file", VENDORED, ids=lambda file: str(file.relative_to(ROOT / "protos")))
def test_vendored_protos_equal_their_originals(file: Path) -> None:
    name = file.relative_to(ROOT / "protos")
    original = Path(str(distribution("googleapis-common-protos").locate_file(name)))
    assert file.read_text() == original.read_text(), "make vendored-protos"
    assert "Licensed under the Apache License, Version 2.0" in file.read_text()


def test_pythons_modules_of_google_come_from_their_own_package() -> None:
    assert Path(annotations_pb2.__file__) == Path(
        str(distribution("googleapis-common-protos").locate_file("google/api/annotations_pb2.py"))
    )
    assert not (Path(v1.__file__).parents[2] / "google").exists()
