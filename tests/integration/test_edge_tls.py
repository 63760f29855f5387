"""REST over TLS: real Envoy with certificates that are made here."""

import asyncio
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import trustme
from support import stub_service
from support.stub_service import StubService

from orchestrator import edge
from orchestrator.addresses import private_folder
from orchestrator.errors import SettingsError
from orchestrator.tls import CertificateFiles

# grpc.aio does not bear a second event loop in one process.
pytestmark = pytest.mark.asyncio(loop_scope="session")

ANY_PORT = "127.0.0.1:0"
NAMES = ("ORCHESTRATOR_TLS_CERT", "ORCHESTRATOR_TLS_KEY", "ORCHESTRATOR_TLS_CLIENT_CA")
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def write(files: CertificateFiles, certificate: trustme.LeafCert) -> None:
    files.certificate.write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
    files.key.write_bytes(certificate.private_key_pem.bytes())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> CertificateFiles:
    made = CertificateFiles(tmp_path / "server.pem", tmp_path / "server.key", None, NAMES)
    write(made, authority.issue_cert("127.0.0.1", "localhost"))
    return made


@pytest_asyncio.fixture(loop_scope="session")
async def process(files: CertificateFiles) -> AsyncIterator[edge.EdgeProcess]:
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address, tls=files) as running,
    ):
        yield running


async def shown_certificate(address: str, trusting: ssl.SSLContext) -> bytes:
    host, _, port = address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


def der(certificate: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())


async def test_rest_is_answered_over_tls(process: edge.EdgeProcess, trusting: ssl.SSLContext) -> None:
    assert process.url == f"https://{process.address}"
    async with httpx.AsyncClient(base_url=process.url, verify=trusting) as client:
        for path in ("/a", "/-/ready", "/-/ui/", "/a/events"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post("/", json={"prompt": "x"})).json()["id"] == "made"
        assert (await client.get("/a", headers={"host": "evil.example"})).status_code == 421


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["http/1.0"], None), ([], None)],
)
async def test_the_protocol_is_negotiated(
    process: edge.EdgeProcess, authority: trustme.CA, offered: list[str], chosen: str | None
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if offered:
        context.set_alpn_protocols(offered)
    host, _, port = process.address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
    if chosen == "h2":
        writer.write(HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0")  # no settings
        frame = await reader.readexactly(9)
        assert frame[3] == 4, "its settings"
    else:
        writer.write(f"GET /a HTTP/1.1\r\nHost: {process.address}\r\n\r\n".encode())
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()


async def test_tls_before_1_2_is_rejected(process: edge.EdgeProcess, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        await shown_certificate(process.address, context)


@pytest.mark.parametrize("path", ["/", "/a", "/-/ready", "/-/ui/"])
async def test_plain_text_is_told_to_use_tls(process: edge.EdgeProcess, path: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{process.address}") as client:
        for response in (await client.get(path), await client.post(path, json={"prompt": "x"})):
            assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
            error = response.json()
            assert set(error) == {"code", "message", "details"}
            assert "https://" in error["message"]


async def test_tls_to_a_port_without_it_fails_at_once(trusting: ssl.SSLContext) -> None:
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
    ):
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number"):
            await shown_certificate(process.address, trusting)


async def test_a_renewed_certificate_is_shown_without_a_restart(
    process: edge.EdgeProcess, files: CertificateFiles, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    async def wait_until_shown(certificate: trustme.LeafCert) -> None:
        async with asyncio.timeout(20):
            while await shown_certificate(process.address, trusting) != der(certificate):
                pass

    host, _, port = process.address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
    written_over = authority.issue_cert("127.0.0.1")
    write(files, written_over)
    await wait_until_shown(written_over)

    # As certbot does: the names stay, and are links that lead elsewhere.
    linked = authority.issue_cert("127.0.0.1")
    behind = CertificateFiles(
        files.certificate.with_name("2.pem"), files.key.with_name("2.key"), None, files.names
    )
    write(behind, linked)
    for name, target in ((files.certificate, behind.certificate), (files.key, behind.key)):
        name.unlink()
        name.symlink_to(target)
    await wait_until_shown(linked)

    writer.write(f"GET /a HTTP/1.1\r\nHost: {process.address}\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n", "connections stay"
    writer.close()


async def test_what_is_no_certificate_leaves_the_earlier_one_in_use(
    process: edge.EdgeProcess,
    files: CertificateFiles,
    authority: trustme.CA,
    trusting: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = await shown_certificate(process.address, trusting)
    files.key.write_text("half of a key")
    async with asyncio.timeout(20):
        while "stays in use" not in caplog.text:
            assert await shown_certificate(process.address, trusting) == shown
    assert "ORCHESTRATOR_TLS_KEY" in caplog.text
    assert "half of a key" not in caplog.text
    mended = authority.issue_cert("127.0.0.1")
    write(files, mended)
    async with asyncio.timeout(20):
        while await shown_certificate(process.address, trusting) != der(mended):
            pass


async def test_with_a_client_authority_only_its_clients_are_answered(
    files: CertificateFiles, authority: trustme.CA, tmp_path: Path
) -> None:
    clients = trustme.CA()
    client_ca = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(str(client_ca))
    mutual = CertificateFiles(files.certificate, files.key, client_ca, NAMES)

    def context_with(certificate: trustme.LeafCert | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if certificate:
            certificate.configure_cert(context)
        return context

    ours, theirs = clients.issue_cert("alice"), trustme.CA().issue_cert("alice")
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address, tls=mutual) as process,
    ):
        async with httpx.AsyncClient(base_url=process.url, verify=context_with(ours)) as client:
            assert (await client.get("/a")).status_code == 200
        for wrong in (None, theirs, authority.issue_cert("alice")):
            async with httpx.AsyncClient(base_url=process.url, verify=context_with(wrong)) as client:
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
                    await client.get("/a")
        # The authority is renewed as the certificate is.
        others = trustme.CA()
        others.cert_pem.write_to_path(str(client_ca))
        async with asyncio.timeout(20):
            while True:
                async with httpx.AsyncClient(
                    base_url=process.url, verify=context_with(others.issue_cert("bob"))
                ) as client:
                    try:
                        assert (await client.get("/a")).status_code == 200
                        break
                    except (httpx.TransportError, ssl.SSLError):
                        continue


async def test_files_that_do_not_fit_are_refused_with_their_settings(
    files: CertificateFiles, authority: trustme.CA, tmp_path: Path
) -> None:
    def refusal(changed: CertificateFiles) -> str:
        with pytest.raises(SettingsError) as caught:
            changed.read()
        return str(caught.value)

    absent = tmp_path / "absent"
    assert "ORCHESTRATOR_TLS_CERT is" in refusal(CertificateFiles(absent, files.key, None, NAMES))
    assert "ORCHESTRATOR_TLS_KEY is" in refusal(CertificateFiles(files.certificate, absent, None, NAMES))
    mutual = CertificateFiles(files.certificate, files.key, absent, NAMES)
    assert "ORCHESTRATOR_TLS_CLIENT_CA is" in refusal(mutual)
    absent.write_text("nothing")
    assert "holds no certificates in PEM" in refusal(mutual)
    files.key.write_bytes(authority.issue_cert("127.0.0.1").private_key_pem.bytes())
    assert "key values mismatch" in refusal(files)
    async with stub_service.serving(StubService()) as grpc_address:
        with pytest.raises(SettingsError, match="key values mismatch"):
            async with edge.running(rest_address=ANY_PORT, grpc_address=grpc_address, tls=files):
                pass


async def test_the_service_may_be_reached_at_a_socket(tmp_path: Path) -> None:
    async with (
        stub_service.serving(StubService(), f"unix:{tmp_path}/grpc.sock") as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):
        assert json.loads((await client.get("/a")).content)["instance"]["id"] == "a"


@pytest.mark.parametrize("name", ["t", "t" * 100])
async def test_sockets_are_in_a_folder_of_this_user_however_long_the_usual_ones_path_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / name
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with private_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        assert folder.stat().st_mode & 0o777 == 0o700
        listener.bind(str(folder / "a-socket.sock"))
    assert not folder.exists()
