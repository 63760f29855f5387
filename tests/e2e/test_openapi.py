"""The description of the REST API is well formed, served, and true of real Envoy with the real service."""

import asyncio
import json
import sys
import tomllib
from pathlib import Path

import pytest
from support.endpoint import Endpoint
from support.process import environment, on_endpoint, process

from orchestrator import v1

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).parents[1] / "schemathesis/schemathesis.toml"
DESCRIPTION = Path(v1.__file__).with_name("openapi.json")


@pytest.mark.timeout(600)  # a quarter of a minute, on a machine that has nothing else to do
async def test_the_service_conforms_to_its_description(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        run = await asyncio.create_subprocess_exec(
            SCHEMATHESIS,
            *("--config-file", CONFIG, "--no-color", "run"),
            f"http://{service.rest_address}/-/openapi.json",
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(CONFIG.parent), SCHEMATHESIS_HOOKS="checks"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await run.communicate()
    report = output.decode()
    assert run.returncode == 0, report
    omitted = sum(
        len(each["include-operation-id"])
        for each in tomllib.loads(CONFIG.read_text()).get("operations", ())
        if not each.get("enabled", True)
    )
    description = json.loads(DESCRIPTION.read_text())
    every = sum(len(operations) for operations in description["paths"].values())
    assert f"{every - omitted} selected / {every} total" in report, (
        "no filter of the tool's own leaves more out"
    )
