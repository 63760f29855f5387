"""The command against the whole service: the real one, with Envoy in front."""

import asyncio
import re
import socket
import sys
from pathlib import Path

from support.endpoint import Endpoint
from support.process import on_endpoint, process
from support.shell import Shell


async def test_run_goes_through_the_envoy_of_the_service_that_it_follows(tmp_path: Path) -> None:
    folder, other = tmp_path / "target", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(folder, "up", **on_endpoint(endpoint.url)) as service,
        process(other, "up", **on_endpoint(endpoint.url)) as another,
    ):
        # The variables name the other one, and a REST address without a server.
        shell = Shell.without_service(tmp_path).with_variables(ORCHESTRATOR_GRPC_ADDRESS=another.grpc_address)
        outcome = await shell.run("run", "p", "--id", "a", "--address", service.grpc_address)
        assert (outcome.code, outcome.out.splitlines()[0]) == (0, "# The result"), outcome.err
        assert f"to see it: http://{service.rest_address}/-/ui/#/instances/a" in outcome.err
        assert (await shell.run("list")).out == ""
        assert (await shell.run("result", "a", "--address", service.grpc_address)).out == outcome.out
        found = await shell.run("doctor", "--address", service.grpc_address)
    assert f"at {service.grpc_address}, big model openai/big, small model openai/small" in found.out
    assert f"{service.rest_address} is answered by the service" in found.out


async def test_a_plan_survives_the_end_of_the_service_started_for_it(tmp_path: Path) -> None:
    async with Endpoint(subtasks=1) as endpoint:
        shell = Shell.without_service(tmp_path).with_variables(
            ORCHESTRATOR_DATABASE="orchestrator.db", **on_endpoint(endpoint.url)
        )
        outcome = await shell.run("run", "p", "--id", "a", "--plan")
        assert (outcome.code, outcome.out.splitlines()[0]) == (0, "plan of a: 1 subtask"), outcome.err
        lines = outcome.err.splitlines()[-7:]
        assert lines[0].startswith("stopped: a is kept in ")
        assert lines[3] == "the plan of a waits for review"
        async with process(tmp_path, **on_endpoint(endpoint.url)) as service:  # on the same database
            shell = shell.with_variables(ORCHESTRATOR_GRPC_ADDRESS=service.grpc_address)
            assert (await shell.run("review", "a", "--approve")).code == 0
            assert (await shell.run("wait", "a", "--timeout", "60")).out == "complete\n"
    assert endpoint.count("planning") == 1


OTHER_DEFAULT = """
import sys
from orchestrator.settings import Settings
Settings.__init__.__defaults__ = tuple(
    sys.argv[1] if default == "127.0.0.1:8787" else default for default in Settings.__init__.__defaults__
)
del sys.argv[1]
"""
"""Makes the first argument the default address of REST: the real default is no test's own."""
NO_ENVOY = """
from orchestrator import edge, errors
def find_envoy():
    raise errors.SettingsError("no envoy")
edge.find_envoy = find_envoy
"""


async def planned(folder: Path, patch: str, *arguments: str) -> tuple[str, str]:
    """Run `run --plan` without a set REST address, patched; what it writes to stdout and stderr."""
    async with Endpoint(subtasks=1) as endpoint:
        shell = Shell.without_service(folder).with_variables(**on_endpoint(endpoint.url))
        environment = {name: it for name, it in shell.environment.items() if "_REST_" not in name}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"{patch}\nfrom orchestrator.cli import main\nmain()", *arguments),
            *("run", "p", "--id", "a", "--plan"),
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


async def test_run_uses_a_free_port_for_rest_where_the_default_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        out, err = await planned(tmp_path, OTHER_DEFAULT, address)
    assert out.startswith("plan of a: 1 subtask\n")
    assert f"{address} is taken: REST of this run takes a free port" in err
    shown = re.search(r"to see it while this runs: http://(127.0.0.1:\d+)/-/ui/#/instances/a", err)
    assert shown
    assert shown[1] != address
    assert " --rest-address 127.0.0.1:0" in err  # the advised `up` can start too


async def test_run_needs_no_envoy(tmp_path: Path) -> None:
    out, err = await planned(tmp_path, NO_ENVOY)
    assert out.startswith("plan of a: 1 subtask\n")
    assert "no envoy is installed: this run has no REST and no page" in err
    assert " serve --address " in err
    assert "--rest-address" not in err
