"""The REST edge: real Envoy in front of the gRPC service, as a child process of this one.

What Envoy does is written in `envoy.yaml` and nowhere else; here it is given its addresses, started, watched
and stopped. The child never outlives its parent, not even one that was killed (on Linux).
"""

import asyncio
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from orchestrator.addresses import free_port
from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.installation import how_to_install
from orchestrator.settings import PREFIX, split_address

READY_TIMEOUT_S: Final = 15.0
"""How long Envoy may take to listen and to find the gRPC service serving."""
STOP_GRACE_S: Final = 5.0
"""How long Envoy may take to end after SIGTERM; it is killed then."""

_REST: Final = f"{PREFIX}REST_ADDRESS"
_GRPC: Final = f"{PREFIX}GRPC_ADDRESS"
_PACKAGE: Final = "src/orchestrator/"
"""How envoy.yaml names the files of this package, relative to the root of a checkout."""
_RBAC: Final = "envoy.filters.http.rbac"
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
    """A running Envoy: what `running` gives."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self._process = process
        self._tail = b""
        self._log = asyncio.create_task(self._read_log())
        self.address: Final = address
        """Where it answers, `host:port`; the port is the one in use when 0 was asked for."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def watch(self) -> NoReturn:
        """Wait for as long as Envoy runs; raise EdgeError when it ends. Cancel this before the block ends."""
        code = await self._process.wait()
        await self._log
        raise EdgeError(f"Envoy ended with code {code}; its last words: {self._last_words()}")

    async def _wait_until_ready(self) -> None:
        """Return once `/-/ready` says 200; raise EdgeError when Envoy ends or READY_TIMEOUT_S is over."""
        ended = asyncio.create_task(self.watch())
        status = 0
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while status != 200:  # noqa: PLR2004  HTTP's OK
                    await asyncio.wait({ended}, timeout=_POLL_S)
                    if ended.done():
                        await ended
                    status = await _status(self.address, "/-/ready")
        except TimeoutError:
            found = f"answers {status} on /-/ready" if status else "does not listen"
            raise EdgeError(
                f"Envoy on {self.address} {found} after {READY_TIMEOUT_S:g} s: is the gRPC service serving "
                f"at {_GRPC}? Envoy's last words: {self._last_words()}"
            ) from None
        finally:
            ended.cancel()
            await asyncio.wait({ended})

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
        await self._log

    async def _read_log(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  it was asked for
        while chunk := await self._process.stderr.read(_LOG_TAIL_BYTES):
            self._tail = (self._tail + chunk)[-_LOG_TAIL_BYTES:]

    def _last_words(self) -> str:
        return self._tail.decode(errors="replace").strip() or "none"


@asynccontextmanager
async def running(
    *, rest_address: str, grpc_address: str, origins: Sequence[str] = (), hosts: Sequence[str] = ()
) -> AsyncIterator[EdgeProcess]:
    """Run Envoy on `rest_address`, in front of the gRPC service at `grpc_address`, until the block ends.

    Both are `host:port`; port 0 of `rest_address` picks a free one. Pages of `origins` may call it, as those
    of this machine, and it may be called by the names `hosts`, as by this machine's. The block begins when
    Envoy answers and finds the service serving (grpc.health.v1): serve before you enter. Whoever enters
    should also await `watch()`. The child is killed when the thread that entered ends, so enter on the main
    thread.

    Raise SettingsError when there is no Envoy or the address cannot be used, EdgeError when Envoy does not
    come up.
    """
    envoy = find_envoy()
    rest_host, rest_port = _resolved(rest_address, _REST)
    rest_address = _joined(rest_host, free_port(_joined(rest_host, rest_port), _REST))
    config = render(rest_address=rest_address, grpc_address=grpc_address, origins=origins, hosts=hosts)
    async with AsyncExitStack() as stack:
        # Envoy reads it only as it starts: once it answers, the file is gone, and no kill leaves it behind.
        with tempfile.NamedTemporaryFile("w", prefix="orchestrator-", suffix=".yaml") as file:
            file.write(config)
            file.flush()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())),
                *(str(envoy), "-c", file.name),
                # Hot restart is for two Envoys that share memory under one name: two services would clash.
                *("--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal goes to its whole process group; this process decides when Envoy ends.
                process_group=0,
            )
            edge = EdgeProcess(process, rest_address)
            stack.push_async_callback(lambda: asyncio.shield(edge._stop()))  # noqa: SLF001  this module's own
            await edge._wait_until_ready()  # noqa: SLF001
        yield edge


def render(
    *, rest_address: str, grpc_address: str, origins: Sequence[str] = (), hosts: Sequence[str] = ()
) -> str:
    """Give `envoy.yaml` for these addresses, as YAML text; raise SettingsError when one cannot be used.

    The pages of `origins` may call the service, and it may be called by the names `hosts`, besides those that
    the file names.
    """
    rest_host, rest_port = _resolved(rest_address, _REST)
    grpc_host, grpc_port = _resolved(grpc_address, _GRPC)
    config: Any = yaml.safe_load(config_file().read_text())
    resources = config["static_resources"]
    listener, cluster = resources["listeners"][0], resources["clusters"][0]
    listener["address"]["socket_address"] = {"address": rest_host, "port_value": rest_port}
    connection_manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"] = {"address": grpc_host, "port_value": grpc_port}
    # Aliases in the file: what is changed here is changed wherever it stands.
    virtual_host = connection_manager["route_config"]["virtual_hosts"][0]
    cors = virtual_host["typed_per_filter_config"]["envoy.filters.http.cors"]
    allowed = cors["allow_origin_string_match"][0]["safe_regex"]
    allowed["regex"] = "|".join([*map(re.escape, origins), allowed["regex"]])
    rbac = next(each for each in connection_manager["http_filters"] if each["name"] == _RBAC)
    (refusal,) = rbac["typed_config"]["rules"]["policies"]["foreign_host"]["permissions"]
    named = refusal["not_rule"]["header"]["string_match"]["safe_regex"]
    names = (rest_address.rpartition(":")[0], *hosts)
    others = [re.escape(name) for name in names if not re.fullmatch(named["regex"], name)]
    named["regex"] = named["regex"].replace("localhost", "|".join([*others, "localhost"]))
    text: str = yaml.safe_dump(_located(config), sort_keys=False, width=110)
    return text


def find_envoy() -> Path:
    """Find the `envoy` binary beside this Python or on the PATH; raise SettingsError when there is none."""
    beside = Path(sys.executable).with_name("envoy")
    if os.access(beside, os.X_OK):
        return beside
    if found := shutil.which("envoy"):
        return Path(found).absolute()
    raise SettingsError(
        f"no envoy for the REST edge: {how_to_install('envoy')}, or put an envoy on the PATH; "
        "`orchestrator serve` runs without it, gRPC only"
    )


def config_file() -> Path:
    """Find `envoy.yaml`: in the installed package, or at the root of the checkout; raise SettingsError."""
    here = Path(__file__)
    for file in (here.with_name("envoy.yaml"), here.parents[2] / "envoy.yaml"):
        if file.is_file():
            return file
    raise SettingsError(f"envoy.yaml is not beside {here.parent}: install the package again")


def _located(value: Any) -> Any:
    """Replace each path into the checkout's package, at any depth, by where the package is."""
    match value:
        case dict():
            return {key: _located(each) for key, each in value.items()}
        case list():
            return [_located(each) for each in value]
        case str() if value.startswith(_PACKAGE):
            file = Path(__file__).parent / value.removeprefix(_PACKAGE)
            if not file.is_file():
                raise SettingsError(f"{file} is missing: install the package again, it brings or builds it")
            return str(file)
    return value


def _resolved(address: str, name: str) -> tuple[str, int]:
    """Split `host:port` and look the host up: Envoy binds and connects to IP addresses only."""
    host, port = split_address(address, name)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SettingsError(f"{name} is {address!r}: {host} has no address ({error.strerror})") from None
    return str(found[0][4][0]), port


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _status(address: str, path: str) -> int:
    """Request `path` and return the HTTP status, or 0 without an answer."""
    host, port = split_address(address, _REST)
    try:
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
