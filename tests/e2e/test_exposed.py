"""A service that others reach: on every address of this machine, with TLS and tokens."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from support.process import Process, free_port, outcome_of, process

from orchestrator.auth import token_file, tokens
from orchestrator.auth.caller import Role
from orchestrator.auth.token_file import Token
from orchestrator.client import Client, ServiceError, Tls


async def command_line(running: Process) -> str:
    """What others see of a process: `ps` shows it."""
    return Path(f"/proc/{running.process.pid}/cmdline").read_text()


async def test_a_team_works_over_tls_with_tokens(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    leaf.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    token = tokens.generate()
    file = tmp_path / "tokens.toml"
    token_file.add(file, Token("ann", "acme", Role.WRITE, tokens.digest(token)))
    grpc_port, rest_port = free_port(), free_port()
    variables = {
        "ORCHESTRATOR_GRPC_ADDRESS": f"0.0.0.0:{grpc_port}",
        "ORCHESTRATOR_REST_ADDRESS": f"0.0.0.0:{rest_port}",
        "ORCHESTRATOR_TLS_CERT": str(tmp_path / "server.pem"),
        "ORCHESTRATOR_TLS_KEY": str(tmp_path / "server.key"),
        "ORCHESTRATOR_AUTH_TOKENS_FILE": str(file),
    }
    address = f"127.0.0.1:{grpc_port}"
    async with process(tmp_path, "up", **variables) as running:
        assert token not in await command_line(running)
        options = ("--address", address, "--tls-ca", str(ca))
        code, output, errors = await outcome_of(
            "run", "Say hello", *options, ORCHESTRATOR_TOKEN=token, folder=tmp_path
        )
        assert code == 0, errors
        assert output.strip()
        assert token not in output + errors
        for wrong in ({}, {"ORCHESTRATOR_TOKEN": tokens.generate()}):
            code, output, errors = await outcome_of("list", *options, **wrong, folder=tmp_path)
            assert (code, output) == (2, ""), errors
        code, _, errors = await outcome_of(
            "list", "--address", address, ORCHESTRATOR_TOKEN=token, folder=tmp_path
        )
        assert (code, "speaks TLS" in errors) == (3, True), errors
        async with Client(address, token=token, tls=Tls(ca)) as client:
            assert {each.tenant for each in (await client.list()).instances} == {"acme"}
        async with Client(address, tls=Tls(ca)) as nobody:
            with pytest.raises(ServiceError, match="no credentials"):
                await nobody.list()
        trusting = ssl.create_default_context(cafile=str(ca))
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{rest_port}", verify=trusting, trust_env=False
        ) as rest:
            assert (await rest.get("/")).status_code == 401
            listed = await rest.get("/", headers={"authorization": f"Bearer {token}"})
            assert [each["tenant"] for each in listed.json()["instances"]] == ["acme"]


async def test_a_service_that_others_would_reach_does_not_start_open(tmp_path: Path) -> None:
    grpc_address = f"0.0.0.0:{free_port()}"
    for command in ("serve", "up"):
        code, output, errors = await outcome_of(
            command,
            "--database",
            str(tmp_path / "log.db"),
            ORCHESTRATOR_GRPC_ADDRESS=grpc_address,
            folder=tmp_path,
        )
        assert (code, output) == (2, "")
        assert "where others reach it" in errors
        assert len(errors.splitlines()) == 1
    assert not (tmp_path / "log.db").exists()
    async with process(
        tmp_path, ORCHESTRATOR_GRPC_ADDRESS=grpc_address, ORCHESTRATOR_INSECURE="1"
    ) as running:
        assert "ready: " in running.ready_line


async def test_a_service_of_a_run_alone_stays_on_loopback_as_simple_as_ever(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    own = {"ORCHESTRATOR_DATABASE": str(tmp_path / "log.db"), "ORCHESTRATOR_TLS_CA": "system"}
    code, output, errors = await outcome_of("run", "Say hello", "--address", address, **own, folder=tmp_path)
    assert code == 0, errors
    assert output.strip()
    code, output, errors = await outcome_of(
        "run", "Say hello", "--address", "192.0.2.1:50051", **own, folder=tmp_path
    )
    assert (code, output) == (3, "")
    assert "no service answers at 192.0.2.1:50051, and one for this run alone is on loopback" in errors
