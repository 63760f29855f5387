"""What a user reads when the service cannot start: one line with the mend, and nothing is lost."""

import asyncio
import socket
import sqlite3
from pathlib import Path

import pytest
from support.endpoint import Endpoint, hang
from support.process import COMMAND, environment, free_port, on_endpoint, process

from orchestrator.client import Client, ServiceError


async def run_cli(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and stderr of a command that ends by itself."""
    own = {
        "ORCHESTRATOR_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
        "ORCHESTRATOR_REST_ADDRESS": f"127.0.0.1:{free_port()}",
        "XDG_DATA_HOME": str(folder),
    }
    command = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        cwd=folder,
        env=environment(**(own | variables)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(command.communicate(), 60)
    assert command.returncode is not None
    return command.returncode, errors.decode()


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"ORCHESTRATOR_DATABASE": "/proc/no/such/log.db"}, 3, "set ORCHESTRATOR_DATABASE to a path"),
        ({"ORCHESTRATOR_GRPC_ADDRESS": "0.0.0.0:50051"}, 2, "where others reach it: set "),
        ({"ORCHESTRATOR_REST_ADDRESS": "8787"}, 2, "must be host:port"),
        ({"ORCHESTRATOR_BIG_MODEL": "gpt-5"}, 2, "must be provider/model"),
        ({"ORCHESTRATOR_MAX_ACTIVE_INSTANCES": "many"}, 2, "must be a whole number"),
        ({"ORCHESTRATOR_LOG_LEVEL": "loud"}, 2, "use debug, info, warning or error"),
        ({"ORCHESTRATOR_ENGINE": "temporal"}, 2, "this version has the engine 'local'"),
        ({"ORCHESTRATOR_DATABASE": "postgresql://x/y"}, 2, "keeps its log in SQLite"),
        ({"ORCHESTRATOR_SMAL_MODEL": "openai/m"}, 2, "did you mean ORCHESTRATOR_SMALL_MODEL?"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else next(iter(value)),
)
async def test_an_invalid_setting_is_one_line_with_the_mend(
    variables: dict[str, str], code: int, words: str, tmp_path: Path
) -> None:
    returned, errors = await run_cli(tmp_path, "up", **variables)
    assert returned == code, errors
    assert errors.startswith("error: ")
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("name", ["ORCHESTRATOR_GRPC_ADDRESS", "ORCHESTRATOR_REST_ADDRESS"])
async def test_a_port_in_use_is_named_with_its_setting(name: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, errors = await run_cli(tmp_path, "up", **{name: address})
    assert code == 2
    assert errors.count("\n") == 1
    assert address in errors
    assert name in errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('small_model = "gpt-5"', "small_model in orchestrator.toml: no model 'gpt-5': it must be"),
        ('database = "/proc/no/log.db"', "set database in orchestrator.toml to a path that this user may"),
        (
            '[[workers]]\nname = "c"\nmodel = "groq/m"',
            "workers[0].model in orchestrator.toml: no key for groq",
        ),
        ('[[workers]]\nname = "c"\nmodell = "m"', "workers[0] in orchestrator.toml has an unknown 'modell'"),
        ('[prices]\n"a/b" = 3', 'prices."a/b" in orchestrator.toml must be { input_usd'),
    ],
)
async def test_an_invalid_value_of_the_file_is_reported_for_the_file(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "orchestrator.toml").write_text(text)
    _, errors = await run_cli(tmp_path, "up")
    assert errors.startswith("error: ")
    assert words in errors
    assert errors.count("\n") == 1


async def test_up_reports_the_database_and_that_it_was_found_in_the_working_folder(
    tmp_path: Path,
) -> None:
    async with Endpoint() as endpoint:
        variables = {
            **on_endpoint(endpoint.url),
            "XDG_DATA_HOME": str(tmp_path / "share"),
            "ORCHESTRATOR_DATABASE": "",
        }
        async with process(tmp_path, **variables) as service:
            assert f" events in {tmp_path}/share/orchestrator/orchestrator.db, " in service.ready_line
        (tmp_path / "data").mkdir()
        (tmp_path / "share/orchestrator/orchestrator.db").rename(tmp_path / "data/orchestrator.db")
        async with process(tmp_path, **variables) as service:
            assert " events in data/orchestrator.db (found in this folder), " in service.ready_line
    assert not (tmp_path / "share/orchestrator/orchestrator.db").exists()


@pytest.mark.parametrize("command", ["serve", "up"])
async def test_a_default_model_that_cannot_be_called_is_reported_before_readiness(
    command: str, tmp_path: Path
) -> None:
    code, errors = await run_cli(tmp_path, command, "--big-model", "groq/m", "--small-model", "ollama/m")
    assert code == 2
    assert errors.startswith("error: --big-model: no key for groq: set GROQ_API_KEY")
    assert errors.count("\n") == 1


async def test_up_reports_the_pages_address_and_names_a_model_once(tmp_path: Path) -> None:
    async with Endpoint() as endpoint:
        models = on_endpoint(endpoint.url)
        async with process(tmp_path, "up", **models) as service:
            assert f" http://{service.rest_address}/-/ui/," in service.ready_line
            assert " models openai/big and openai/small;" in service.ready_line
        models["ORCHESTRATOR_SMALL_MODEL"] = "openai/big"
        async with process(tmp_path, **models) as service:
            assert " model openai/big;" in service.ready_line
            assert "/-/ui/" not in service.ready_line


async def test_a_second_service_reports_the_first_and_how_to_run_two(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, process(tmp_path, "up", **on_endpoint(endpoint.url)) as service:
        code, errors = await run_cli(tmp_path, "up", "--grpc-address", service.grpc_address)
        assert code == 2
        assert errors.startswith(f"error: already running: an orchestrator answers at {service.grpc_address}")
        assert "its own --grpc-address, ORCHESTRATOR_REST_ADDRESS and ORCHESTRATOR_DATABASE" in errors
        assert errors.count("\n") == 1


async def test_a_database_of_another_server_is_left_to_it(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, process(tmp_path, **on_endpoint(endpoint.url)) as service:
        database = service.variables["ORCHESTRATOR_DATABASE"]
        code, errors = await run_cli(tmp_path, "serve", ORCHESTRATOR_DATABASE=database)
        assert code == 3
        assert f"in use by another server (process {service.process.pid})" in errors
        assert errors.count("\n") == 1


async def test_a_database_locked_by_another_program_is_named(tmp_path: Path) -> None:
    database = tmp_path / "orchestrator.db"
    async with Endpoint() as endpoint, process(tmp_path, **on_endpoint(endpoint.url)):
        pass
    holder = sqlite3.connect(database)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    code, errors = await run_cli(tmp_path, "serve", ORCHESTRATOR_DATABASE=str(database))
    holder.close()
    assert code == 3
    assert "another program holds it: close that program" in errors
    assert errors.count("\n") == 1


async def test_run_reports_how_many_unfinished_instances_it_resumes(tmp_path: Path) -> None:
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            for number in range(3):
                await client.create("x", instance_id=f"a{number}")
            await endpoint.wait_for_calls(3)
            await client.terminate("a0")
        await service.kill()
    async with Endpoint(subtasks=1) as endpoint:
        variables = {**service.variables, **on_endpoint(endpoint.url)}
        code, errors = await run_cli(tmp_path, "run", "y", **variables)
    assert code == 0
    (note,) = (line for line in errors.splitlines() if "unfinished" in line)
    database = service.variables["ORCHESTRATOR_DATABASE"]
    assert note == f"2 unfinished instances of {database} go on beside this one while it runs"


async def test_up_reports_how_many_unfinished_instances_it_resumes(tmp_path: Path) -> None:
    async with Endpoint(lambda _: hang) as endpoint:
        variables = on_endpoint(endpoint.url)
        async with process(tmp_path, **variables) as service:
            async with Client(service.grpc_address) as client:
                await client.create("x")
            await endpoint.wait_for_calls(1)
        async with process(tmp_path, **variables) as service:
            assert service.process.stdout
            line = await service.process.stdout.readline()
            assert line == b"going on with what is unfinished there: 1\n"


async def test_run_reports_where_this_terminals_models_differ_from_the_services(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        variables = {**service.variables, "ORCHESTRATOR_BIG_MODEL": "openai/other"}
        code, errors = await run_cli(tmp_path, "run", "x", **variables)
        assert code == 0
        assert "ORCHESTRATOR_BIG_MODEL is openai/other here, and the service was started without" in errors
        code, errors = await run_cli(tmp_path, "run", "x", "--big-model", "openai/other", **service.variables)
        assert (code, "was started without" in errors) == (0, False)


async def test_the_doctor_rejects_a_price_that_the_service_would_reject(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text('prices = { "openai/x" = { input_us = 1.0 } }')
    for command in ("doctor", "serve"):
        code, errors = await run_cli(tmp_path, command)
        assert code == 2
        assert errors.startswith('error: prices."openai/x" in orchestrator.toml must be')


async def test_run_starts_its_own_service_and_stops_it(tmp_path: Path) -> None:
    async with Endpoint(subtasks=2) as endpoint:
        variables = environment(
            **on_endpoint(endpoint.url),
            ORCHESTRATOR_GRPC_ADDRESS=f"127.0.0.1:{free_port()}",
            ORCHESTRATOR_REST_ADDRESS=f"127.0.0.1:{free_port()}",
        )
        command = await asyncio.create_subprocess_exec(
            COMMAND,
            "run",
            'Say "hi" for $5',
            cwd=tmp_path,
            env=variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(command.communicate(), 60)
        assert command.returncode == 0, errors.decode()
        assert output.decode() == "# The result\n\nAll parts, put together.\n"
        assert 'Say "hi" for $5' in endpoint.calls[0].prompt_text
    lines = errors.decode().splitlines()
    assert not any("\x1b" in line for line in lines)
    for words in (
        "planning with openai/big",
        "t1 Part 1 started",
        "t2 Part 2 done",
        "synthesis done",
        "complete",
    ):
        assert any(words in line for line in lines), (words, lines)
    for name in ("ORCHESTRATOR_GRPC_ADDRESS", "ORCHESTRATOR_REST_ADDRESS"):
        host, _, port = variables[name].rpartition(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0


async def test_the_secrets_of_an_address_are_sent_and_appear_in_no_log(tmp_path: Path) -> None:
    async with Endpoint() as endpoint:
        url = endpoint.url.replace("://", "://user:hunter2-secret@")
        variables = on_endpoint(f"{url}?sig=hunter2-signature")
        code, errors = await run_cli(tmp_path, "run", "Hi", "--log-level", "debug", **variables)
        assert code == 0, errors
        [call, *_] = endpoint.calls
        assert call.headers["Authorization"].startswith("Basic ")
        assert call.request.query["sig"] == "hunter2-signature"
    assert "hunter2" not in errors
    assert call.headers["Authorization"].removeprefix("Basic ") not in errors


_BROKEN_WRITER = """
from orchestrator.log.sqlite.tables import SqliteTables

def publish(self, group):
    raise ZeroDivisionError("planted")

SqliteTables.publish = publish
"""


async def test_a_service_whose_log_fails_exits_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_BROKEN_WRITER)
    async with (
        process(tmp_path, **on_endpoint("http://127.0.0.1:1"), PYTHONPATH=str(tmp_path)) as service,
        Client(service.grpc_address) as client,
    ):
        with pytest.raises(ServiceError):
            await client.create("Build it", instance_id="a")
        _, errors = await asyncio.wait_for(service.process.communicate(), 20)
        assert service.process.returncode == 3
        *_, last = errors.decode().splitlines()
        assert last.startswith("error: the event log's writer has ended (ZeroDivisionError: planted)")
        assert "start the service again" in last
    (tmp_path / "sitecustomize.py").unlink()
    async with (
        process(tmp_path, **on_endpoint("http://127.0.0.1:1")) as service,
        Client(service.grpc_address) as client,
    ):
        assert [instance.id for instance in (await client.list()).instances] == ["a"]  # it was durable
