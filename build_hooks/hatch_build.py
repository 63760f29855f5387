"""Build step: turns protos/ into Python modules, type stubs, Envoy's descriptor set and OpenAPI."""

import json
import runpy
from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface):
    """Runs protoc before a wheel or an editable install is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Write into `orchestrator/v1`: `*_pb2*.py(i)`, `descriptors.binpb` and `openapi.json`."""
        root = Path(self.root)
        out = root / "src"
        descriptors = out / "orchestrator/v1/descriptors.binpb"
        sources = sorted((root / "protos/orchestrator/v1").glob("*.proto"))
        include = [
            f"-I{root / 'protos'}",
            f"-I{files('grpc_tools').joinpath('_proto')}",
        ]
        generate = [
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out={out}",
            f"--mypy_grpc_out={out}",
            *map(str, sources),
        ]
        describe_for_envoy = [
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={descriptors}",
            *map(str, sources),
            # Envoy shows an error's details as JSON only when it knows their types.
            "google/rpc/error_details.proto",
        ]
        for arguments in (generate, describe_for_envoy):
            if protoc.main(["protoc", *include, *arguments]) != 0:
                raise RuntimeError(f"protoc failed on {len(sources)} files of protos/; its message is above")
        # By its path: the build's backend cannot import what lies beside it.
        describe = runpy.run_path(str(root / "build_hooks/openapi.py"))["describe"]
        description = describe(descriptors.read_bytes(), self.metadata.version)
        text = json.dumps(description, indent=1, ensure_ascii=False)
        descriptors.with_name("openapi.json").write_text(f"{text}\n")
