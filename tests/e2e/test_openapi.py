"""The description of the REST API is well formed, served, and true of real Envoy with the real service."""

import asyncio
import sys
from pathlib import Path

import pytest
from support.endpoint import Endpoint
from support.process import environment, on_endpoint, process

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
FOLDER = Path(__file__).parents[1] / "schemathesis"


@pytest.mark.timeout(300)  # about a minute, on a machine that has nothing else to do
async def test_the_description_is_true(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        run = await asyncio.create_subprocess_exec(
            SCHEMATHESIS,
            *("--config-file", FOLDER / "schemathesis.toml", "--no-color", "run"),
            f"http://{service.rest_address}/-/openapi.json",
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(FOLDER), SCHEMATHESIS_HOOKS="checks"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await run.communicate()
    told = output.decode()
    assert run.returncode == 0, told
    assert "12 selected / 15 total" in told
