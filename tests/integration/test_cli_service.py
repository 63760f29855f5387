"""One address names one service: what is created there is followed there, and it reports its settings."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from support.scripted_service import ScriptedService, play_success
from support.shell import NO_MODELS, Outcome, Shell, assert_one_line, free_address

from orchestrator import edge
from orchestrator.v1 import orchestrator_pb2


@pytest.fixture
def shell_without_service(tmp_path: Path) -> Shell:
    return Shell.without_service(tmp_path)


@asynccontextmanager
async def two_services() -> AsyncIterator[tuple[ScriptedService, ScriptedService]]:
    """The intended service, and another one at another address."""
    async with ScriptedService(play_success) as own, ScriptedService(play_success) as other:
        yield await own.start(rest_port=0), await other.start(rest_port=0)


@pytest.mark.parametrize("flag", ["--address", "--grpc-address"])
async def test_run_creates_at_the_service_that_it_follows_whatever_answers_elsewhere(
    shell_without_service: Shell, flag: str
) -> None:
    async with two_services() as (own, other):
        outcome = await shell_without_service.on(other).run("run", "p", flag, own.address)
    assert outcome.code == 0, outcome.err
    assert (len(own.requests), own.created_over_rest) == (1, 1)
    assert not other.requests
    assert f"to see it: http://{own.rest_address}/-/ui/#/instances/i1" in outcome.err


async def test_a_rest_address_of_another_service_is_not_used(shell_without_service: Shell) -> None:
    async with two_services() as (own, other):  # as through a tunnel to gRPC alone
        assert own.info
        own.info.rest_address = other.rest_address
        outcome = await shell_without_service.run("run", "p", "--address", own.address)
    assert outcome.code == 0, outcome.err
    assert (len(own.requests), own.created_over_rest, len(other.requests)) == (1, 0, 0)
    assert f"another service answers at {other.rest_address}: creating the instance over gRPC" in outcome.err
    assert "to see it" not in outcome.err


@pytest.mark.parametrize("kind", ["older", "without REST", "unreachable REST"])
async def test_a_service_without_rest_is_called_over_grpc(shell_without_service: Shell, kind: str) -> None:
    async with two_services() as (own, other):
        assert own.info
        own.info.rest_address = {"without REST": "", "unreachable REST": free_address()}.get(kind, "")
        if kind == "older":
            own.info = None
        outcome = await shell_without_service.on(other).run("run", "p", "--address", own.address)
    assert outcome.code == 0, outcome.err
    assert (len(own.requests), own.created_over_rest, len(other.requests)) == (1, 0, 0)
    assert "over gRPC" in outcome.err


async def test_both_names_of_the_address_must_agree(shell_without_service: Shell) -> None:
    for command in (("run", "p"), ("up",), ("serve",)):
        outcome = await shell_without_service.run(
            *command, "--address", "127.0.0.1:1", "--grpc-address", "127.0.0.1:2"
        )
        assert outcome.code == 2
        assert_one_line(outcome)


@pytest.mark.parametrize("command", ["serve", "up"])
async def test_a_service_listens_at_the_address(shell_without_service: Shell, command: str) -> None:
    shell = shell_without_service.with_variables(OPENAI_API_KEY="none", **NO_MODELS)
    address = free_address()
    process = await shell.start(command, "--address", address)
    assert process.stdout
    ready = (await process.stdout.readline()).decode()
    process.terminate()
    await process.communicate()
    assert f"gRPC on {address}" in ready


async def test_another_product_at_the_address_is_reported_as_such(shell_without_service: Shell) -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        for command in (("get", "a"), ("list",), ("create", "p"), ("result", "a"), ("delete", "a", "b")):
            outcome = await shell_without_service.run(*command, "--address", address)
            assert outcome.code == 3
            assert_one_line(outcome)
            assert f"what answers at {address} is no orchestrator" in outcome.err
    finally:
        await server.stop(None)


async def test_run_reports_settings_of_this_terminal_that_differ_from_the_services(
    shell_without_service: Shell,
) -> None:
    async with two_services() as (own, _):
        shell = shell_without_service.with_variables(
            ORCHESTRATOR_BIG_MODEL="openai/mine",
            ORCHESTRATOR_SMALL_MODEL="openai/small",
            ORCHESTRATOR_MAX_OUTPUT_TOKENS="7",
        )
        outcome = await shell.run("run", "p", "--address", own.address)
        chosen = await shell.run("run", "p", "--address", own.address, "--big-model", "openai/mine")
    assert (
        "ORCHESTRATOR_BIG_MODEL is openai/mine here, and the service was started without it, with openai/big"
        in outcome.err
    )
    assert "ORCHESTRATOR_SMALL_MODEL" not in outcome.err
    assert "ORCHESTRATOR_MAX_OUTPUT_TOKENS is 7 here, and the service has 100" in outcome.err
    assert "openai/big" not in chosen.err.replace("planning with openai/big", "").replace(
        "synthesis with openai/big", ""
    )


async def doctor(shell: Shell, service: ScriptedService, *options: str) -> Outcome:
    return await shell.run("doctor", "--address", service.address, *options)


async def test_doctor_shows_the_services_settings(shell_without_service: Shell) -> None:
    shell = shell_without_service.with_variables(
        ORCHESTRATOR_BIG_MODEL="openai/mine", ORCHESTRATOR_REST_ADDRESS="127.0.0.1:1"
    )
    (shell.folder / "orchestrator.toml").write_text('[[workers]]\nname = "coder"\n')
    async with two_services() as (own, _):
        outcome = await doctor(shell, own, "--json")
    findings = {}
    for check in outcome.json["checks"]:
        findings.setdefault(check["subject"], []).append((check["status"], check["finding"]))
    (status, said), *differences = findings["service"]
    assert status == "ok"
    assert said == f"0.1.0 at {own.address}, big model openai/big, small model openai/small"
    assert [status for status, _ in differences] == ["warning"] * 3
    assert "ORCHESTRATOR_BIG_MODEL is openai/mine here" in differences[0][1]
    rest = f"ORCHESTRATOR_REST_ADDRESS is 127.0.0.1:1 here, and the service answers at {own.rest_address}"
    assert differences[1][1] == rest
    assert "workers in orchestrator.toml are not those of the service, which has none" in differences[2][1]
    assert findings["rest"] == [("ok", f"{own.rest_address} is answered by the service")]
    # Its keys are its own: that this terminal has none does not break it.
    ((status, said),) = findings["big model"]
    assert (status, said) == ("warning", "called with this terminal's variables: openai/big cannot be called")
    assert (outcome.code, outcome.json["ok"]) == (0, True)


async def test_doctor_shows_the_services_workers_and_a_differing_version(
    shell_without_service: Shell,
) -> None:
    async with two_services() as (own, other):
        assert own.info
        own.info.version = "0.0.9"
        own.info.rest_address = other.rest_address
        own.info.workers.append(orchestrator_pb2.ServiceWorker(name="coder", model="openai/codex"))
        outcome = await doctor(shell_without_service, own)
    assert re.search(r"! service +0\.0\.9 at ", outcome.out)
    assert re.search(r"! worker coder +called with this terminal's variables: openai/codex", outcome.out)
    assert (
        f"the service says {other.rest_address}, and from here another service answers there" in outcome.out
    )


ASKING = ("list", "list --watch", "get x", "events x", "wait x", "terminate x", "run p", "create p")


async def test_an_address_of_rest_is_reported_with_the_one_of_grpc(shell_without_service: Shell) -> None:
    async with ScriptedService(play_success) as service:
        await service.start()
        async with edge.running(rest_address="127.0.0.1:0", grpc_address=service.address) as envoy:
            calls = [shell_without_service.run(*line.split(), "--address", envoy.address) for line in ASKING]
            outcomes = await asyncio.gather(*calls)
            examined = await shell_without_service.run("doctor", "--address", envoy.address)
    problem = f"{envoy.address} answers HTTP/1.1 but no gRPC"
    mend = f"it is where an orchestrator has its REST; for gRPC use --address {service.address}"
    for line, outcome in zip(ASKING, outcomes, strict=True):
        assert (line, outcome.code, outcome.err) == (line, 3, f"error: {problem}: {mend}\n")
    assert re.search(rf"✗ grpc +{re.escape(problem)}\n +{re.escape(mend)}\n", examined.out)
    assert not service.requests


async def test_a_server_of_http_alone_is_not_a_service(shell_without_service: Shell) -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        site = web.SockSite(runner, sock := socket.create_server(("127.0.0.1", 0)))
        await site.start()
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        for line in ASKING:
            outcome = await shell_without_service.run(*line.split(), "--address", address)
            assert (line, outcome.code) == (line, 3)
            assert outcome.err == (
                f"error: {address} answers HTTP/1.1 but no gRPC: "
                "name with --address where the service listens for gRPC\n"
            )
    finally:
        await runner.cleanup()
