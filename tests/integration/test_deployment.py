"""What `deploy/` offers: real nginx and Caddy in front of real Envoy, and the unit as systemd reads it."""

import asyncio
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from support import stub_service
from support.process import free_port
from support.stub_service import StubService

from orchestrator import edge

# grpc.aio does not bear a second event loop in one process.
pytestmark = pytest.mark.asyncio(loop_scope="session")

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = "orchestrator.example.com"
MIB = 1024 * 1024


class Proxied:
    """A proxy that runs the sample, and a client that reaches it by the sample's name."""

    def __init__(self, client: httpx.AsyncClient, service: StubService) -> None:
        self.client = client
        self.service = service


def certificate(folder: Path) -> tuple[Path, Path, ssl.SSLContext]:
    authority = trustme.CA()
    own = authority.issue_cert(NAME)
    chain, key = folder / "server.pem", folder / "server.key"
    chain.write_bytes(b"".join(each.bytes() for each in own.cert_chain_pems))
    own.private_key_pem.write_to_path(str(key))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return chain, key, trusting


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the sample has no {old!r}"
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, behind: str, chain: Path, key: Path) -> list[str]:
    sample = replaced(
        (DEPLOY / "nginx.conf").read_text(),
        {
            "listen 443": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8787": behind,
            "/etc/ssl/orchestrator.example.com.pem": str(chain),
            "/etc/ssl/private/orchestrator.example.com.key": str(key),
        },
    )
    paths = "".join(
        f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"user root; daemon off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{main} http {{ access_log off; {paths} {sample} }}")
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, behind: str, chain: Path, key: Path) -> list[str]:
    sample = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        {
            f"\n{NAME} {{": f"\n{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {chain} {key}",
            "127.0.0.1:8787": behind,
        },
    )
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
    (folder / "Caddyfile").write_text(options + sample)
    return ["caddy", "run", "--config", str(folder / "Caddyfile")]


PROXIES = {"nginx": nginx, "caddy": caddy}


@asynccontextmanager
async def proxied(kind: str, folder: Path) -> AsyncIterator[Proxied]:
    service, port = StubService(), free_port()
    chain, key, trusting = certificate(folder)
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(rest_address="127.0.0.1:0", grpc_address=grpc_address, hosts=(NAME,)) as process,
    ):
        command = PROXIES[kind](folder, port, process.address, chain, key)
        environment = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"}
        log = folder / "proxy.log"
        with log.open("wb") as output:
            proxy = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=output, stderr=asyncio.subprocess.STDOUT
            )
        headers = {"host": f"{NAME}:{port}"}
        try:
            async with (
                httpx.AsyncClient(
                    base_url=f"https://127.0.0.1:{port}",
                    verify=trusting,
                    headers=headers,
                    timeout=20,
                    event_hooks={"request": [name_the_server]},
                ) as client,
                asyncio.timeout(60),
            ):
                while True:
                    assert proxy.returncode is None, log.read_text()
                    try:
                        await client.get("/-/ready")
                        break
                    except httpx.ConnectError:
                        continue
                yield Proxied(client, service)
        finally:
            if proxy.returncode is None:
                proxy.terminate()
            await proxy.wait()


async def name_the_server(request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = NAME


@pytest.mark.parametrize("kind", PROXIES)
async def test_a_proxy_as_in_the_sample_passes_on_what_the_service_does(kind: str, tmp_path: Path) -> None:
    if not shutil.which(kind):
        pytest.skip(f"{kind} is not installed")
    async with proxied(kind, tmp_path) as there:
        client, service = there.client, there.service
        origin = "https://" + client.headers["host"]
        assert (await client.get("/-/ready")).json() == {"status": "ready"}
        assert (await client.get("/-/ui/")).status_code == 200
        # A page of the proxy's name, and one of another.
        created = await client.post("/", json={"prompt": "x"}, headers={"origin": origin})
        assert created.json()["id"] == "made"
        foreign = await client.post("/", json={"prompt": "x"}, headers={"origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, 7)
        # Credentials, and the session's cookie.
        session = await client.post("/-/session", headers={"authorization": "Bearer orc_a", "origin": origin})
        assert session.headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")
        await client.get("/a", headers={"cookie": "orchestrator_session=orc_a"})
        assert service.metadata["authorization"] == "Bearer orc_a"
        # An event is there before the stream ends, and the stream ends as its reader leaves.
        service.stream_closed.clear()
        async with client.stream("GET", f"/{stub_service.QUIET}/events") as response:
            assert await anext(response.aiter_bytes()) == b": ok\n\n"
        async with asyncio.timeout(20):
            await service.stream_closed.wait()
        # Large bodies and answers, and errors with their details.
        batch = {"requests": [{"id": f"i{n}", "prompt": "x" * 256 * 1024} for n in range(100)]}
        assert len((await client.post("/-/instances:batchCreate", json=batch)).json()["instances"]) == 100
        large = (await client.get(f"/{stub_service.LARGE}")).json()
        assert len(large["instance"]["finalResult"]) == 8 * MIB
        failed = await client.get(f"/{stub_service.MISSING}")
        assert (failed.status_code, failed.json()["code"]) == (404, 5)
        # What fails is not sent a second time.
        before = len(service.created)
        lost = await client.post("/", json={"prompt": "x", "id": stub_service.FAILING})
        assert lost.status_code == 503
        assert len(service.created) == before + 1


async def test_the_samples_allow_what_the_service_does() -> None:
    config = edge.config_file().read_text()
    largest = re.search(r"max_request_bytes: (\d+)", config)
    assert largest
    assert int(largest[1]) == 64 * MIB
    assert "client_max_body_size 64m;" in (DEPLOY / "nginx.conf").read_text()
    assert "max_size 64MiB" in (DEPLOY / "Caddyfile").read_text()
    assert "timeout: 3660s" in config
    assert "proxy_read_timeout 3660s;" in (DEPLOY / "nginx.conf").read_text()


async def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd is not installed")
    command = tmp_path / "orchestrator"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    unit = tmp_path / "orchestrator.service"
    text = (DEPLOY / "orchestrator.service").read_text()
    unit.write_text(replaced(text, {"ExecStart=/opt/orchestrator/bin/orchestrator": f"ExecStart={command}"}))
    checked = await asyncio.create_subprocess_exec(
        analyze, "verify", unit, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(checked.communicate(), 60)
    assert (checked.returncode, said.decode()) == (0, "")
