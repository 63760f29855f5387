"""docker-compose.yml, and what its first start makes; the containers themselves need a Docker."""

import asyncio
import json
import os
import ssl
import stat
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
from support.endpoint import Endpoint
from support.process import COMMAND, on_endpoint, process

from orchestrator.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
IN_FILE_ONLY = {"prices", "workers", "sources"}
OF_COMMANDS = {"token", "token_file", "tls_ca", "tls_client_cert", "tls_client_key"}
OF_THE_IMAGE = {"database"}
"""In the volume, where the image has it."""


async def configuration(**variables: str) -> Any:
    """The configuration as docker-compose reads it."""
    run = await asyncio.create_subprocess_exec(
        *(COMPOSE, "--file", ROOT / "docker-compose.yml", "config", "--format", "json"),
        env={"PATH": os.environ["PATH"], **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode == 0, errors.decode()
    return json.loads(output)


async def test_every_setting_of_the_service_can_be_given() -> None:
    names = {field.name for field in fields(Settings)} - IN_FILE_ONLY - OF_COMMANDS - OF_THE_IMAGE
    given = {PREFIX + name.upper(): "1" for name in names - {"rest_address", "grpc_address"}}
    environment = (await configuration(**given))["services"]["orchestrator"]["environment"]
    assert environment.items() >= given.items()
    assert {f"{PREFIX}REST_ADDRESS", f"{PREFIX}GRPC_ADDRESS"} <= environment.keys()
    (folder,) = (
        volume["source"]
        for volume in (await configuration())["services"]["orchestrator"]["volumes"]
        if volume["target"] == "/etc/orchestrator"
    )
    assert folder == str(ROOT / "config"), "where orchestrator.toml is"
    assert "WORKDIR /etc/orchestrator\n" in (ROOT / "Dockerfile").read_text()


async def test_what_is_published_has_tls_and_asks_for_tokens() -> None:
    services = (await configuration())["services"]
    service = services["orchestrator"]
    assert {port["target"] for port in service["ports"]} == {8787, 50051}
    for name in ("TLS_CERT", "TLS_KEY", "AUTH_TOKENS_FILE"):
        assert service["environment"][PREFIX + name].startswith("/var/lib/orchestrator/")
    assert service["environment"].get(f"{PREFIX}INSECURE") is None
    assert service["depends_on"]["first-start"]["condition"] == "service_completed_successfully"
    for each in services.values():
        assert each["read_only"]
        assert each["cap_drop"] == ["ALL"]
        assert each["security_opt"] == ["no-new-privileges:true"]


async def first_start(folder: Path, **variables: str) -> str:
    run = await asyncio.create_subprocess_exec(
        *(ROOT / "deploy/first-start.sh", folder),
        env={"PATH": f"{COMMAND.parent}:/usr/bin:/bin", "HOME": str(folder), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode == 0, output.decode()
    return output.decode()


async def test_the_first_start_makes_what_a_service_open_to_others_needs(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    said = await first_start(made, TLS_NAMES="team.example.com,192.0.2.7,2001:db8::7")
    token = (made / "admin.token").read_text().strip()
    assert token.startswith("orc_")
    assert token not in said
    assert token not in (made / "tokens.toml").read_text()
    files = [made / "admin.token", made / "tokens.toml", made / "tls/server.key", made / "tls/server.pem"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    before = [file.read_bytes() for file in files]
    await first_start(made)
    assert [file.read_bytes() for file in files] == before, "a later start changes nothing"

    decoded: Any = ssl._ssl._test_decode_cert(str(made / "tls/server.pem"))  # type: ignore[attr-defined]
    assert {name for _, name in decoded["subjectAltName"]} == {
        *("127.0.0.1", "team.example.com", "192.0.2.7", "2001:DB8:0:0:0:0:0:7")
    }
    settings = {
        "ORCHESTRATOR_TLS_CERT": str(made / "tls/server.pem"),
        "ORCHESTRATOR_TLS_KEY": str(made / "tls/server.key"),
        "ORCHESTRATOR_AUTH_TOKENS_FILE": str(made / "tokens.toml"),
    }
    trusting = ssl.create_default_context(cafile=str(made / "tls/server.pem"))
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url), **settings) as service,
        httpx.AsyncClient(base_url=f"https://{service.rest_address}", verify=trusting) as client,
    ):
        assert (await client.post("/", json={"prompt": "x"})).status_code == 401
        bearer = {"authorization": f"Bearer {token}"}
        created = await client.post("/", json={"prompt": "Write a haiku", "id": "a"}, headers=bearer)
        assert created.status_code == 200, created.text
        waited = await client.get("/a:wait", headers=bearer, timeout=60)
        assert waited.json()["status"]["status"] == "complete"
        assert (await client.delete("/a", headers=bearer)).status_code == 200


async def test_a_certificate_near_its_end_is_made_anew(tmp_path: Path) -> None:
    await first_start(tmp_path)
    old = tmp_path / "tls/server.pem"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-key", tmp_path / "tls/server.key", "-subj", "/CN=old"),
        *("-days", "10", "-out", old),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    before = old.read_bytes()
    assert "made a certificate" in await first_start(tmp_path)
    assert old.read_bytes() != before
