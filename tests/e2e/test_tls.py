"""The whole service behind TLS."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import trustme
from support.endpoint import Endpoint
from support.process import on_endpoint, process


async def curl(*arguments: str) -> tuple[int, str]:
    """Exit code and output of curl, which is not told to check nothing."""
    run = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode is not None
    return run.returncode, output.decode()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
async def test_the_main_job_is_done_over_https_and_http_2(tmp_path: Path) -> None:
    authority, folder = trustme.CA(), tmp_path / "tmp"
    folder.mkdir()
    certificate, key, root = (str(tmp_path / name) for name in ("server.pem", "server.key", "root.pem"))
    own = authority.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    tls = {"ORCHESTRATOR_TLS_CERT": certificate, "ORCHESTRATOR_TLS_KEY": key, "TMPDIR": str(folder)}
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url), **tls) as service,
    ):
        url = f"https://{service.rest_address}"
        assert f"REST on {url}, the page on {url}/-/ui/, " in service.ready_line
        trusting = ("--cacert", root)
        body = json.dumps({"prompt": "Write a haiku", "id": "a"})
        code, created = await curl(*trusting, "--http2", f"{url}/", "-d", body)
        assert (code, json.loads(created)["id"]) == (0, "a")
        code, said = await curl(*trusting, "--write-out", "\n%{http_version}", f"{url}/a:wait")
        waited, _, version = said.rpartition("\n")
        assert (code, version) == (0, "2")
        assert json.loads(waited)["status"]["status"] == "complete"
        code, events = await curl(*trusting, "--no-buffer", f"{url}/a/events")
        assert code == 0
        assert "event: end" in events
        code, _ = await curl(f"{url}/")
        assert code == 60, "curl does not know the authority"
        await service.stop()
    assert list(folder.iterdir()) == [], "nothing is left behind"
