"""A service that asks for tokens, as people use it: the real command, over gRPC and through Envoy."""

import json
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.process import Process, outcome_of, process

from orchestrator.auth.caller import Role
from orchestrator.client import Client, ServiceError, SyncClient


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.toml"


async def new_token(file: Path, name: str, *, role: Role = Role.WRITE, tenant: str = "acme") -> str:
    code, output, errors = await outcome_of(
        "token",
        "new",
        name,
        "--tenant",
        tenant,
        "--role",
        role.value,
        "--expires",
        "90d",
        "--file",
        str(file),
    )
    assert code == 0, errors
    return output.strip()


@pytest.fixture(scope="module")
async def token(file: Path) -> str:
    return await new_token(file, "ann")


@pytest.fixture(scope="module")
async def running(file: Path, token: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    assert token
    folder = tmp_path_factory.mktemp("service")
    async with process(folder, "up", ORCHESTRATOR_AUTH_TOKENS_FILE=str(file)) as started:
        yield started


async def test_a_token_is_shown_once_and_the_file_holds_its_hash(file: Path, token: str) -> None:
    assert re.fullmatch(r"orc_[0-9a-f]{72}", token)
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, output, _ = await outcome_of("token", "list", ORCHESTRATOR_AUTH_TOKENS_FILE=str(file))
    assert code == 0
    assert token not in output
    line = next(line for line in output.splitlines() if line.startswith("ann "))
    assert line.split()[:3] == ["ann", "acme", "write"]


async def test_commands_send_the_token_of_a_variable_or_a_file(
    running: Process, token: str, tmp_path: Path, file: Path
) -> None:
    address = ("--address", running.grpc_address)
    code, output, errors = await outcome_of("list", *address)
    assert (code, output) == (2, "")
    assert "there are no credentials" in errors
    assert "ORCHESTRATOR_TOKEN" in errors
    code, output, errors = await outcome_of(
        "create", "p", "--id", "by-variable", "--json", *address, ORCHESTRATOR_TOKEN=token
    )
    assert code == 0, errors
    assert json.loads(output)["instance"]["tenant"] == "acme"
    held = tmp_path / "token"
    held.write_text(f"{token}\n")
    code, output, errors = await outcome_of(
        "get", "by-variable", "--json", *address, "--token-file", str(held)
    )
    assert code == 0, errors
    code, output, errors = await outcome_of(
        "events", "by-variable", "--json", *address, ORCHESTRATOR_TOKEN_FILE=str(held)
    )
    assert code == 0, errors
    assert json.loads(output.splitlines()[0])["actor"] == "ann"
    used = (await outcome_of("token", "list", "--json", "--file", str(file)))[1]
    assert json.loads(used)["tokens"][0]["lastUsed"]


async def test_run_uses_a_service_that_asks_for_tokens_through_rest(running: Process, token: str) -> None:
    variables = {"ORCHESTRATOR_TOKEN": token, "ORCHESTRATOR_GRPC_ADDRESS": running.grpc_address}
    code, output, errors = await outcome_of("run", "Say hello", "--max-subtasks", "1", **variables)
    assert code == 0, errors
    assert output.strip()
    assert "/-/ui/#/instances/" in errors, "it was created over REST"
    assert token not in output + errors


async def test_rest_takes_the_token_as_a_header(running: Process, token: str, file: Path) -> None:
    reader = await new_token(file, "reader", role=Role.READ)
    async with httpx.AsyncClient(base_url=f"http://{running.rest_address}", trust_env=False) as client:
        for path in ("/", "/-/info", "/x", "/x/events", "/-/events"):
            answer = await client.get(path)
            assert answer.status_code == 401, path
            assert answer.json()["details"][0]["reason"] == "TOKEN_MISSING"
        for path in ("/-/healthy", "/-/ready"):
            assert (await client.get(path)).status_code == 200
        wrong = await client.get("/", headers={"authorization": f"Bearer {token[:-1]}"})
        assert (wrong.status_code, wrong.json()["details"][0]["reason"]) == (401, "TOKEN_INVALID")
        created = await client.post(
            "/", json={"prompt": "p", "id": "by-rest"}, headers={"authorization": f"Bearer {token}"}
        )
        assert created.json()["instance"]["tenant"] == "acme"
        headers = {"authorization": f"Bearer {reader}"}
        while (found := await client.get("/", headers=headers)).status_code == 401:
            pass  # the file has changed a moment ago
        assert "by-rest" in [each["id"] for each in found.json()["instances"]]
        refused = await client.post("/by-rest:terminate", headers=headers)
        assert (refused.status_code, refused.json()["details"][0]["reason"]) == (403, "ROLE_FORBIDS")


async def test_both_clients_send_a_token(running: Process, token: str) -> None:
    async with Client(running.grpc_address, token=token) as client:
        assert (await client.create("p", instance_id="by-client")).instance.tenant == "acme"
    with SyncClient(running.grpc_address, token=token) as blocking:
        assert blocking.get("by-client").instance.id == "by-client"
    with SyncClient(running.grpc_address) as nobody, pytest.raises(ServiceError) as caught:
        nobody.get("by-client")
    assert caught.value.reason == "TOKEN_MISSING"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "a", "--role", "write"], "--tenant"),
        (["new", "a b", "--tenant", "t", "--role", "write"], "name is 'a b'"),
        (["new", "a", "--tenant", "/", "--role", "write"], "tenant is '/'"),
        (["new", "a", "--tenant", "t", "--role", "root"], "role"),
        (["new", "a", "--tenant", "t", "--role", "write", "--expires", "soon"], "no time span"),
        (["new", "a", "--tenant", "t", "--role", "write", "--expires", "0"], "over 0"),
        (["revoke", "a"], "has no token 'a'"),
    ],
)
async def test_a_mistake_with_tokens_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    file = tmp_path / "tokens.toml"
    code, output, errors = await outcome_of("token", *arguments, "--file", str(file))
    assert (code, output) == (2, "")
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert not file.exists()


async def test_without_a_file_the_command_says_how_to_name_one() -> None:
    code, _, errors = await outcome_of("token", "list")
    assert code == 2
    assert "ORCHESTRATOR_AUTH_TOKENS_FILE" in errors
