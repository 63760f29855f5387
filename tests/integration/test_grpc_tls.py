"""gRPC over TLS and mTLS: real certificates, made here, and the real command."""

import asyncio
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import trustme
from support.process import outcome_of
from support.service import Service, service

from orchestrator.client import Client, ServiceError, SyncClient, Tls
from orchestrator.models.scripted import Scripted
from orchestrator.tls import CertificateFiles

NAMES = ("ORCHESTRATOR_TLS_CERT", "ORCHESTRATOR_TLS_KEY", "ORCHESTRATOR_TLS_CLIENT_CA")


class Files(NamedTuple):
    """An authority's certificate, and a leaf's with its key."""

    ca: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        return [
            "--tls-ca",
            str(self.ca),
            "--tls-client-cert",
            str(self.certificate),
            "--tls-client-key",
            str(self.key),
        ]


def write(folder: Path, name: str, authority: trustme.CA, leaf: trustme.LeafCert) -> Files:
    files = Files(*(folder / f"{name}.{ending}" for ending in ("ca", "pem", "key")))
    authority.cert_pem.write_to_path(files.ca)
    files.certificate.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(files.key)
    return files


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(tmp_path: Path, authority: trustme.CA) -> Files:
    return write(tmp_path, "server", authority, authority.issue_cert("127.0.0.1", "localhost"))


@pytest.fixture
def client(tmp_path: Path, authority: trustme.CA) -> Files:
    return write(tmp_path, "client", authority, authority.issue_cert("ann@example.com"))


@pytest.fixture
async def running(tmp_path: Path, server: Files) -> AsyncIterator[Service]:
    tls = CertificateFiles(server.certificate, server.key, None, NAMES)
    async with service(tmp_path / "log.db", Scripted(subtasks=1), tls=tls) as started:
        yield started


@pytest.fixture
async def mutual(tmp_path: Path, server: Files) -> AsyncIterator[Service]:
    tls = CertificateFiles(server.certificate, server.key, server.ca, NAMES)
    async with service(tmp_path / "log.db", Scripted(subtasks=1), tls=tls) as started:
        yield started


def shown_certificate(address: str) -> bytes:
    """Return the certificate that a server shows, as DER."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as secure:
        assert secure.selected_alpn_protocol() == "h2"
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
        return secure.getpeercert(binary_form=True) or b""


async def test_both_clients_speak_tls(running: Service, server: Files) -> None:
    async with Client(running.address, tls=Tls(server.ca)) as asynchronous:
        created = await asynchronous.create("p")
        assert (await asynchronous.wait(created.id)).instance.HasField("end_time")
        assert await asynchronous.is_serving()

    def blocking() -> str:
        with SyncClient(running.address, tls=Tls(server.ca)) as synchronous:
            return synchronous.get(created.id).instance.id

    assert await asyncio.to_thread(blocking) == created.id


async def test_no_client_speaks_with_a_service_that_it_does_not_trust(
    running: Service, tmp_path: Path
) -> None:
    other = trustme.CA()
    other.cert_pem.write_to_path(tmp_path / "other.ca")
    for tls in (Tls(tmp_path / "other.ca"), Tls()):
        async with Client(running.address, tls=tls) as distrustful:
            with pytest.raises(ServiceError) as caught:
                await distrustful.get("a")
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_older_tls_is_not_spoken(running: Service) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    host, _, port = running.address.rpartition(":")
    with pytest.raises(OSError, match=r".*"):
        await asyncio.open_connection(host, int(port), ssl=context)


async def test_a_renewed_certificate_is_shown_without_a_restart(
    running: Service, server: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    before = await asyncio.to_thread(shown_certificate, running.address)
    async with Client(running.address, tls=Tls(server.ca)) as connected:
        await connected.info()
        renewed = authority.issue_cert("127.0.0.1")
        write(tmp_path, "server", authority, renewed)
        while await asyncio.to_thread(shown_certificate, running.address) == before:
            pass
        await connected.info()
    async with Client(running.address, tls=Tls(server.ca)) as another:
        await another.info()


async def test_with_mtls_a_client_needs_a_certificate_of_the_authority(
    mutual: Service, client: Files, tmp_path: Path
) -> None:
    async with Client(mutual.address, tls=Tls(client.ca, client.certificate, client.key)) as known:
        await known.info()
    stranger = trustme.CA()
    forged = write(tmp_path, "forged", stranger, stranger.issue_cert("ann@example.com"))
    for tls in (Tls(client.ca), Tls(client.ca, forged.certificate, forged.key)):
        async with Client(mutual.address, tls=tls) as unknown:
            with pytest.raises(ServiceError) as caught:
                await unknown.info()
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_commands_speak_tls_and_show_a_certificate(mutual: Service, client: Files) -> None:
    code, output, errors = await outcome_of(
        "create", "p", "--id", "a", "--address", mutual.address, *client.options
    )
    assert (code, output) == (0, "a\n"), errors
    code, output, errors = await outcome_of(
        "get", "a", "--address", mutual.address, *client.options, "--json"
    )
    assert code == 0, errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "speaks TLS: name with --tls-ca"),
        (["--tls-ca", "system"], "is not one that --tls-ca (system) vouches for"),
        (["--tls-ca", "/nowhere.pem"], "/nowhere.pem cannot be read: No such file"),
        (["--tls-client-cert", "a.pem"], "TLS needs ORCHESTRATOR_TLS_CA too"),
    ],
)
async def test_a_command_says_what_is_wrong_with_tls(
    running: Service, options: list[str], words: str
) -> None:
    code, output, errors = await outcome_of("get", "a", "--address", running.address, *options)
    assert code in (2, 3)
    assert output == ""
    assert words in errors
    assert len(errors.splitlines()) == 1


async def test_a_command_without_the_certificate_that_is_asked_for_says_so(
    mutual: Service, client: Files
) -> None:
    code, _, errors = await outcome_of("get", "a", "--address", mutual.address, "--tls-ca", str(client.ca))
    assert code == 3
    assert "give --tls-client-cert and --tls-client-key" in errors


async def test_tls_with_a_service_without_it_is_a_clear_error(tmp_path: Path, client: Files) -> None:
    async with service(tmp_path / "log.db", Scripted()) as plain:
        code, _, errors = await outcome_of("get", "a", "--address", plain.address, "--tls-ca", str(client.ca))
    assert code == 3
    assert f"{plain.address} does not speak TLS: leave --tls-ca out" in errors


async def test_a_token_is_not_sent_for_others_to_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("orc_secret")
    code, _, errors = await outcome_of(
        "list", "--address", "192.0.2.1:50051", "--token-file", str(tmp_path / "token")
    )
    assert code == 2
    assert "for all to read" in errors
