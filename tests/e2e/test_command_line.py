"""The command against the whole service: the real one, with Envoy in front."""

from pathlib import Path

from support.endpoint import Endpoint
from support.process import on_endpoint, process
from support.shell import Shell


async def test_run_goes_through_the_envoy_of_the_service_that_it_follows(tmp_path: Path) -> None:
    meant, other = tmp_path / "meant", tmp_path / "other"
    meant.mkdir()
    other.mkdir()
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(meant, "up", **on_endpoint(endpoint.url)) as service,
        process(other, "up", **on_endpoint(endpoint.url)) as another,
    ):
        # The variables name the other one, and a REST address that nobody has.
        shell = Shell.without_service(tmp_path).with_variables(ORCHESTRATOR_GRPC_ADDRESS=another.grpc_address)
        outcome = await shell.run("run", "p", "--id", "a", "--address", service.grpc_address)
        assert (outcome.code, outcome.out.splitlines()[0]) == (0, "# The result"), outcome.err
        assert f"to see it: http://{service.rest_address}/-/ui/#/instances/a" in outcome.err
        assert (await shell.run("list")).out == ""
        assert (await shell.run("result", "a", "--address", service.grpc_address)).out == outcome.out
        found = await shell.run("doctor", "--address", service.grpc_address)
    assert f"at {service.grpc_address}, big model openai/big, small model openai/small" in found.out
    assert f"{service.rest_address} is answered by the service" in found.out


async def test_a_plan_waits_for_a_service_of_its_own_to_be_started_again(tmp_path: Path) -> None:
    async with Endpoint(subtasks=1) as endpoint:
        shell = Shell.without_service(tmp_path).with_variables(
            ORCHESTRATOR_DATABASE="orchestrator.db", **on_endpoint(endpoint.url)
        )
        outcome = await shell.run("run", "p", "--id", "a", "--plan")
        assert (outcome.code, outcome.out.splitlines()[0]) == (0, "plan of a: 1 subtask"), outcome.err
        told = outcome.err.splitlines()[-7:]
        assert told[0].startswith("stopped: a is kept in ")
        assert told[3] == "the plan of a waits for review"
        async with process(tmp_path, **on_endpoint(endpoint.url)) as service:  # on the same database
            shell = shell.with_variables(ORCHESTRATOR_GRPC_ADDRESS=service.grpc_address)
            assert (await shell.run("review", "a", "--approve")).code == 0
            assert (await shell.run("wait", "a", "--timeout", "60")).out == "complete\n"
    assert endpoint.count("planning") == 1
