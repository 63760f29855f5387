"""The REST edge: real Envoy in front of the gRPC service, as a child process of this one.

`envoy.yaml` says what Envoy does; this module fills in addresses and files, and starts, watches and stops the
process. `edge_tls.py` adds what TLS needs. The child never outlives its parent, not even one that was killed
(on Linux).
"""

import asyncio
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, Never, NoReturn

import yaml

from orchestrator import edge_tls
from orchestrator.addresses import free_port, private_folder
from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.installation import how_to_install
from orchestrator.settings import PREFIX, split_address
from orchestrator.tls import CertificateFiles, Certificates

READY_TIMEOUT_S: Final = 15.0
"""How long Envoy may take to listen and to find the gRPC service serving."""
STOP_GRACE_S: Final = 5.0
"""How long Envoy may take to end after SIGTERM; it is killed then."""

STANDARD_ERROR: Final = "-"
"""As the file of the access log."""

_STANDARD_ERROR_FD: Final = 2
_NO_ORIGIN: Final = "none"
"""An expression that fits no origin."""
_REST_SETTING: Final = f"{PREFIX}REST_ADDRESS"
_GRPC_SETTING: Final = f"{PREFIX}GRPC_ADDRESS"
_PACKAGE: Final = "src/orchestrator/"
"""How envoy.yaml names the files of this package, relative to the root of a checkout."""
_WEB: Final = f"{_PACKAGE}web/"
_PACKAGE_FOLDER: Final = Path(__file__).parent
_PAGE_PATH: Final = "/-/ui/"
_POLL_S: Final = 0.05
_LOG_TAIL_BYTES: Final = 4096

# Asks the kernel to kill this process when its parent ends, then becomes the command. Envoy cannot ask for
# itself, and code of ours between fork and exec is not safe once gRPC has threads. The check after asking
# catches a parent that was gone before it.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("the parent has gone")
os.execv(command[0], command)
"""


class EdgeError(OrchestratorError):
    """Envoy did not start, or ended by itself; the message has the tail of its log."""


class EdgeProcess:
    """A running Envoy, as `running` yields it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, tls_folder: Path | None) -> None:
        self._process = process
        self._tls_folder = tls_folder
        self._log_tail = b""
        self._log_reader = asyncio.create_task(self._read_log())
        self.address: Final = address
        """Where it listens, `host:port`; with the port in use where 0 was asked for."""
        self.url: Final = f"{'https' if tls_folder else 'http'}://{address}"
        """The same as a URL, without a slash at its end."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def watch(self) -> NoReturn:
        """Wait while Envoy runs and raise EdgeError when it ends; cancel this before the block ends."""
        code = await self._process.wait()
        await self._log_reader
        raise EdgeError(f"Envoy ended with code {code}; its last words: {self._log_excerpt()}")

    async def _wait_until_ready(self) -> None:
        """Return once `/-/ready` says 200; raise EdgeError when Envoy ends or READY_TIMEOUT_S is over."""
        watching = asyncio.create_task(self.watch())
        status = 0
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while status != 200:  # noqa: PLR2004  HTTP's OK
                    await asyncio.wait({watching}, timeout=_POLL_S)
                    if watching.done():
                        await watching
                    status = await _request_status(self.address, "/-/ready", self._tls_folder)
        except TimeoutError:
            condition = f"answers {status} on /-/ready" if status else "does not listen"
            raise EdgeError(
                f"Envoy on {self.address} {condition} after {READY_TIMEOUT_S:g} s: is the gRPC service "
                f"serving at {_GRPC_SETTING}? Envoy's last words: {self._log_excerpt()}"
            ) from None
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._log_reader

    async def _read_log(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  it was asked for
        while chunk := await self._process.stderr.read(_LOG_TAIL_BYTES):
            self._log_tail = (self._log_tail + chunk)[-_LOG_TAIL_BYTES:]

    def _log_excerpt(self) -> str:
        return self._log_tail.decode(errors="replace").strip() or "none"


@asynccontextmanager
async def running(
    *,
    rest_address: str,
    grpc_address: str,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    tls: CertificateFiles | None = None,
    access_log: str = "",
    max_requests_per_second: int = 0,
    asks_for_credentials: bool = False,
) -> AsyncIterator[EdgeProcess]:
    """Run Envoy on `rest_address`, in front of the gRPC service at `grpc_address`, until the block ends.

    Both are `host:port`; port 0 of `rest_address` picks a free one, and `grpc_address` may be `unix:path`.
    `origins` and `hosts` allow pages and names besides this machine's own. With `tls`, REST speaks TLS alone,
    with the certificate as it is at the time: it is read again when it is renewed. `access_log` is a file, or
    STANDARD_ERROR; empty: none. `max_requests_per_second` is for each client's address; 0: none. Where the
    service `asks_for_credentials`, it may be called by any name, and by pages of its own and `origins` alone.

    The block begins when Envoy answers and finds the service serving (grpc.health.v1), so the service must be
    up before. Await `watch()` inside of the block to notice an end of Envoy. The child is killed when the
    thread that entered ends, so enter on the main thread.

    Raise SettingsError when there is no Envoy or the address cannot be used, EdgeError when Envoy does not
    come up.
    """
    envoy = find_envoy()
    rest_host, rest_port = _resolve(rest_address, _REST_SETTING)
    rest_address = _join_address(rest_host, free_port(_join_address(rest_host, rest_port), _REST_SETTING))
    async with AsyncExitStack() as stack:
        tls_folder = None
        if tls:
            certificates = tls.read()
            tls_folder = stack.enter_context(private_folder())
            edge_tls.write_secrets(tls, tls_folder)
            stack.push_async_callback(_cancel, asyncio.create_task(_renew(tls, certificates, tls_folder)))
        config = render(
            rest_address=rest_address,
            grpc_address=grpc_address,
            origins=origins,
            hosts=hosts,
            tls=tls,
            tls_folder=tls_folder,
            access_log=access_log,
            max_requests_per_second=max_requests_per_second,
            asks_for_credentials=asks_for_credentials,
        )
        # Envoy reads the file as it starts and not again: it is gone before a kill could leave it behind.
        with tempfile.NamedTemporaryFile("w", prefix="orchestrator-", suffix=".yaml") as file:
            file.write(config)
            file.flush()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())),
                *(str(envoy), "-c", file.name),
                # Hot restart is for two Envoys that share memory under one name: two services would clash.
                *("--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"),
                # By default a line of the access log is there after ten seconds at most.
                *("--file-flush-interval-msec", "1000"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=_STANDARD_ERROR_FD if access_log == STANDARD_ERROR else asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal goes to its whole process group; this process decides when Envoy ends.
                process_group=0,
            )
            edge = EdgeProcess(process, rest_address, tls_folder)
            stack.push_async_callback(lambda: asyncio.shield(edge._stop()))  # noqa: SLF001  this module's own
            await edge._wait_until_ready()  # noqa: SLF001
        yield edge


async def _renew(tls: CertificateFiles, known: Certificates, folder: Path) -> NoReturn:
    """Have Envoy read the certificate again each time it is renewed."""
    async for _ in tls.renewals(known):
        edge_tls.have_read_again(folder)
    raise AssertionError("renewals never end")


async def _cancel(task: "asyncio.Task[Never]") -> None:
    task.cancel()
    await asyncio.wait([task])


def render(
    *,
    rest_address: str,
    grpc_address: str,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    tls: CertificateFiles | None = None,
    tls_folder: Path | None = None,
    access_log: str = "",
    max_requests_per_second: int = 0,
    asks_for_credentials: bool = False,
) -> str:
    """Return `envoy.yaml` for these addresses, as YAML text.

    `origins` and `hosts` are allowed besides those in the file, and every file of the page is served. With
    `tls`, what `edge_tls.write_secrets` writes is in `tls_folder`. What is replaced is found by name, so the
    order of entries in the file is free. Raise SettingsError when an address cannot be used or the file lacks
    a name.
    """
    rest_host, rest_port = _resolve(rest_address, _REST_SETTING)
    config: Any = yaml.safe_load(config_file().read_text())
    resources = _member(config, "static_resources")
    listener = _named(resources, "listeners", "rest")
    listener["address"] = _socket_address(rest_host, rest_port)
    cluster = _named(resources, "clusters", "orchestrator")
    endpoint = {"endpoint": {"address": _grpc_address(grpc_address)}}
    _member(cluster, "load_assignment")["endpoints"] = [{"lb_endpoints": [endpoint]}]

    filter_chain = _named(listener, "filter_chains", "rest")
    manager = _named(filter_chain, "filters", "envoy.filters.network.http_connection_manager")
    http = _member(manager, "typed_config")
    rbac = _named(http, "http_filters", "envoy.filters.http.rbac")
    policies = _member(rbac, "typed_config", "rules", "policies")
    # Aliases in the file: a matcher that is changed here is changed wherever it stands.
    own_pages = _header_matcher(policies, "foreign_origin", "origin")
    _allow(own_pages, map(re.escape, origins))
    allowed_hosts = _header_matcher(policies, "foreign_host", ":authority")
    names = [rest_address.rpartition(":")[0], *hosts]
    others = [re.escape(name) for name in names if not re.fullmatch(allowed_hosts["regex"], name)]
    _allow(allowed_hosts, [rf"(?i:({'|'.join(others)})\.?(:\d*)?)"] if others else [])
    if asks_for_credentials:
        # A page under a name of its own has no session there, and one at another port of this machine is not
        # what its person signed in to.
        del policies["foreign_host"]
        own_pages["regex"] = "|".join(map(re.escape, origins)) or _NO_ORIGIN

    log = _named(http, "access_log", "envoy.access_loggers.file")
    if access_log:
        del log["filter"]
        if access_log != STANDARD_ERROR:
            _member(log, "typed_config")["path"] = access_log
    if max_requests_per_second:
        limit = _member(_named(http, "http_filters", "envoy.filters.http.local_ratelimit"), "typed_config")
        _member(limit, "filter_enabled", "default_value")["numerator"] = 100
        for descriptor in _member(limit, "descriptors"):
            tokens = {"max_tokens": max_requests_per_second, "tokens_per_fill": max_requests_per_second}
            descriptor["token_bucket"] = {**tokens, "fill_interval": "1s"}
    if tls and tls_folder:
        ready = _named(http, "http_filters", "envoy.filters.http.health_check.ready")
        resources["listeners"].append(edge_tls.readiness_listener(ready, tls_folder))
        edge_tls.add_tls(listener, filter_chain, tls, tls_folder)

    virtual_host = _named(_member(http, "route_config"), "virtual_hosts", "orchestrator")
    _add_page_routes(_member(virtual_host, "routes"))
    text: str = yaml.safe_dump(_with_absolute_paths(config), sort_keys=False, width=110)
    return text


def find_envoy() -> Path:
    """Find the `envoy` binary beside this Python or on the PATH; raise SettingsError when there is none."""
    installed = Path(sys.executable).with_name("envoy")
    if os.access(installed, os.X_OK):
        return installed
    if on_path := shutil.which("envoy"):
        return Path(on_path).absolute()
    raise SettingsError(
        f"no envoy for the REST edge: {how_to_install('envoy')}, or put an envoy on the PATH; "
        "`orchestrator serve` runs without it, gRPC only"
    )


def config_file() -> Path:
    """Find `envoy.yaml`: in the installed package, or at the root of the checkout; raise SettingsError."""
    module = Path(__file__)
    for file in (module.with_name("envoy.yaml"), module.parents[2] / "envoy.yaml"):
        if file.is_file():
            return file
    raise SettingsError(f"envoy.yaml is not beside {module.parent}: install the package again")


def _member(value: Any, *keys: str) -> Any:
    """Return what is below nested keys of a mapping; raise SettingsError that names a missing key."""
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise SettingsError(f"envoy.yaml has no {key!r} where it is needed ({'.'.join(keys)})")
        value = value[key]
    return value


def _named(parent: Any, key: str, name: str) -> Any:
    """Return the one entry of the list `parent[key]` with this name; raise SettingsError without it."""
    entries = [entry for entry in _member(parent, key) if entry.get("name") == name]
    if len(entries) != 1:
        raise SettingsError(
            f"envoy.yaml has {len(entries) or 'no'} {key} with the name {name!r}: it needs one"
        )
    return entries[0]


def _header_matcher(policies: Any, policy: str, header: str) -> Any:
    """Return the `safe_regex` that a policy compares a header with; raise SettingsError without one."""
    pending = [_member(policies, policy)]
    while pending:
        match pending.pop():
            case {"name": name, "string_match": {"safe_regex": matcher}} if name == header:
                return matcher
            case dict() as value:
                pending += value.values()
            case list() as value:
                pending += value
    raise SettingsError(f"envoy.yaml has no safe_regex for the header {header!r} in its policy {policy!r}")


def _allow(matcher: Any, expressions: Iterable[str]) -> None:
    matcher["regex"] = "|".join([*expressions, matcher["regex"]])


def _socket_address(host: str, port: int) -> Any:
    return {"socket_address": {"address": host, "port_value": port}}


def _grpc_address(address: str) -> Any:
    if address.startswith("unix:"):
        return {"pipe": {"path": address.removeprefix("unix:")}}
    return _socket_address(*_resolve(address, _GRPC_SETTING))


def _add_page_routes(routes: list[Any]) -> None:
    """Give each file of the page that has no route the one of another file of its kind, with its own name."""
    by_name: dict[str, Any] = {}
    for route in routes:
        filename = route.get("direct_response", {}).get("body", {}).get("filename", "")
        if filename.startswith(_WEB):
            by_name[filename.removeprefix(_WEB)] = route
    by_suffix = {PurePosixPath(name).suffix: route for name, route in by_name.items()}
    web = _PACKAGE_FOLDER / "web"
    for name in sorted(file.relative_to(web).as_posix() for file in web.rglob("*") if file.is_file()):
        similar = by_suffix.get(PurePosixPath(name).suffix)
        if similar is not None and name not in by_name:
            response = {**similar["direct_response"], "body": {"filename": f"{_WEB}{name}"}}
            # Before all others, of which some match any path.
            routes.insert(
                0, {**similar, "match": {"path": f"{_PAGE_PATH}{name}"}, "direct_response": response}
            )


def _with_absolute_paths(value: Any) -> Any:
    """Replace each path into the checkout's package, at any depth, by where the package is."""
    match value:
        case dict():
            return {key: _with_absolute_paths(each) for key, each in value.items()}
        case list():
            return [_with_absolute_paths(each) for each in value]
        case str() if value.startswith(_PACKAGE):
            file = _PACKAGE_FOLDER / value.removeprefix(_PACKAGE)
            if not file.is_file():
                raise SettingsError(f"{file} is missing: install the package again, it brings or builds it")
            return str(file)
    return value


def _resolve(address: str, name: str) -> tuple[str, int]:
    """Split `host:port` and resolve the host: Envoy binds and connects to IP addresses only."""
    host, port = split_address(address, name)
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SettingsError(f"{name} is {address!r}: {host} has no address ({error.strerror})") from None
    return str(addresses[0][4][0]), port


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _request_status(address: str, path: str, tls_folder: Path | None) -> int:
    """Request `path` and return the HTTP status, or 0 without an answer."""
    host, port = split_address(address, _REST_SETTING)
    try:
        if tls_folder:
            socket_path = edge_tls.readiness_socket(tls_folder)
            reader, writer = await asyncio.open_unix_connection(socket_path)
        else:
            reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return 0
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        line = (await reader.readline()).split()
        return int(line[1]) if len(line) > 1 else 0
    except OSError:
        return 0
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
