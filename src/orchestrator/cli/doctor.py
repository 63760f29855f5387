"""What the service needs, whether it is there, and how to mend it."""

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeAlias

from rich.text import Text

from orchestrator.cli import rest, service_settings
from orchestrator.cli.reporters import terminal
from orchestrator.cli.text import one_line
from orchestrator.client import Client
from orchestrator.core import workers
from orchestrator.core.prompts import Message, Prompt
from orchestrator.errors import AddressError, ModelError, SettingsError
from orchestrator.installation import DISTRIBUTION, WEIGHTS, how_to_install
from orchestrator.log import storage_faults
from orchestrator.models import llama, providers
from orchestrator.models.base import ModelRequest
from orchestrator.models.endpoint import HttpProvider
from orchestrator.models.llama import Llama
from orchestrator.models.prices import Prices
from orchestrator.settings import Settings, split_address
from orchestrator.v1.orchestrator_pb2 import GetServiceInfoResponse

OLDEST_PYTHON: Final = (3, 11)
CALL_TIMEOUT_S: Final = 60.0
"""How long a model may take for a word: the embedded one has to start first, others think."""

_OTHER_MODELS: Final = "set both models to a provider's, such as openai/… with OPENAI_API_KEY"
_CALLED: Final = "called with this terminal's variables"
_FROM_HERE: Final = "of a service that is started from here"
_NO_WRAPPING: Final = 10_000
_LEAST_WIDTH: Final = 30
"""Columns of a finding: where they are fewer beside its subject, it stands below."""
_HELLO: Final = Prompt("work", (Message("user", "Answer with one word: hello."),), may_be_cut=True)
"""Asked with as many tokens as a real call, to see whether the endpoint takes them; few are used."""
_SHORT_HELLO: Final = _HELLO._replace(max_output_tokens=16)
"""For the embedded model, which takes any number and may go on."""


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
    """Look at everything; raise SettingsError where a setting cannot be read."""
    Prices.read(settings.prices)
    async with Client(settings.grpc_address) as client:
        is_serving = await client.is_serving()
        info = await service_settings.ask(client) if is_serving else None
    roles = _roles_of(info) if info else _roles_in(settings)
    if info:
        # Whether the service can call them hangs on its own variables, which this terminal does not see.
        theirs = replace(settings, max_output_tokens=info.default_config.max_output_tokens)
        found = await _models(roles, theirs, environment)
        models = [replace(it, finding=f"{_CALLED}: {it.finding}", is_optional=True) for it in found]
        edge = await _rest_of(info)
    else:
        models = await _models(roles, settings, environment)
        edge = _port("rest", settings.rest_address, settings.name_of("rest_address"))
    database = _database(settings)
    is_needed = not info and any(model.startswith("llama/") for model, _ in roles.values())
    return [
        _python(),
        _envoy(),
        *(_service(settings, info) if info else ()),
        *models,
        _embedded(is_needed=is_needed),
        replace(database, finding=f"{_FROM_HERE}: {database.finding}") if info else database,
        _port("grpc", settings.grpc_address, settings.name_of("grpc_address"), is_ours=is_serving),
        edge,
    ]


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
    # A word that is too long for a line, such as a path, is left to the terminal: it can be copied whole.
    for line in lines_of(findings, console.width if console.is_terminal else _NO_WRAPPING):
        console.print(line, soft_wrap=True)


def lines_of(findings: list[Finding], width: int) -> Iterator[Text]:
    """The checklist's lines for so many columns, broken between words."""
    room = max(len(it.subject) for it in findings)
    indent = room + 4
    if is_narrow := width - indent < _LEAST_WIDTH:
        indent = 2
    for it in findings:
        sign, style = ("✗", "red") if it.is_broken else ("!", "yellow") if it.mend else ("✓", "green")
        head = Text(f"{sign} ", style=style).append(f"{it.subject:<{room}}  ", style="bold")
        texts = [(line, "default") for line in _broken(it.finding, width - indent)]
        texts += [(line, "dim") for line in _broken(it.mend, width - indent)]
        if not is_narrow:
            head.append(*texts.pop(0))
        head.rstrip()
        yield head
        for text, dimness in texts:
            yield Text(" " * indent).append(text, style=dimness)


def _broken(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width, break_long_words=False, break_on_hyphens=False)


def _python() -> Finding:
    version = sys.version_info[:3]
    name = ".".join(map(str, version))
    mend = "" if version >= OLDEST_PYTHON else "install it with Python 3.11 or later"
    return Finding("python", f"{name} at {sys.executable}", mend)


def _envoy() -> Finding:
    beside = Path(sys.executable).parent
    path = shutil.which("envoy", path=str(beside)) or shutil.which("envoy")
    if path:
        return Finding("envoy", path)
    return Finding("envoy", "not found: there is no REST", how_to_install("envoy"))


def _service(settings: Settings, info: GetServiceInfoResponse) -> Iterator[Finding]:
    """What the service is set to, and what of it this terminal would have otherwise."""
    models, ours = info.models, version(DISTRIBUTION)
    names = f"big model {models.big_model}, small model {models.small_model}"
    mend = f"this command is {ours}: start the service anew" if ours != info.version else ""
    yield Finding("service", f"{info.version} at {settings.grpc_address}, {names}", mend, is_optional=True)
    for found in (
        service_settings.model_differences(settings, models),
        service_settings.differences(settings, info),
    ):
        for difference, cure in found:
            yield Finding("service", difference, cure, is_optional=True)


_Roles: TypeAlias = Mapping[str, tuple[str, str]]
"""By role: the model, and the setting that names it."""


def _roles_in(settings: Settings) -> _Roles:
    roles = {
        "big model": (settings.big_model, settings.name_of("big_model")),
        "small model": (settings.small_model, settings.name_of("small_model")),
    }
    for number, worker in enumerate(workers.read(settings.workers)):
        if worker.model:
            roles[f"worker {worker.name}"] = (worker.model, settings.name_of(f"workers[{number}].model"))
    return roles


def _roles_of(info: GetServiceInfoResponse) -> _Roles:
    names = {"big model": info.models.big_model, "small model": info.models.small_model}
    names |= {f"worker {worker.name}": worker.model for worker in info.workers if worker.model}
    return {role: (name, "where the service is started") for role, name in names.items()}


async def _models(roles: _Roles, settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """Whether each model answers; one that is set twice is called once."""
    places: dict[str, list[str]] = {}
    for name, place in roles.values():
        places.setdefault(name, []).append(place)
    calls = (
        _model(name, ", ".join(dict.fromkeys(where)), settings, environment) for name, where in places.items()
    )
    found = dict(zip(places, await asyncio.gather(*calls), strict=True))
    return [replace(found[name], subject=role) for role, (name, _) in roles.items()]


async def _model(name: str, where: str, settings: Settings, environment: Mapping[str, str]) -> Finding:
    """Call a model once, for a word; `where` are the settings that name it."""
    subject = "model"
    try:
        models = providers.from_environment(environment)
        provider, model = models.resolve(name)
        provider.check(model)
    except SettingsError as error:
        return Finding(subject, f"{name} cannot be called", f"{error} ({where})")
    endpoint = next((it for it in providers.ENDPOINTS if name.startswith(f"{it.name}/")), None)
    place = f"{name}{_set_up(endpoint, environment)}"
    hello = _HELLO if endpoint else _SHORT_HELLO
    request = ModelRequest(model, hello, settings.max_output_tokens, timeout_s=2 * CALL_TIMEOUT_S)
    pieces: list[str] = []

    def hear(piece: str, *, is_anew: bool = False) -> None:  # noqa: ARG001  any piece is a sign of life
        pieces.append(piece)

    started_s = time.monotonic()
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await provider.complete(request, hear)
    except TimeoutError:
        if pieces:
            return Finding(subject, f"{place}: it answers, slowly")
        said = f"{place} gave no answer within {CALL_TIMEOUT_S:g} s"
        mend = f"try again, for it may have to load; otherwise {_mend('', where, endpoint)}"
        return Finding(subject, said, mend)
    except ModelError as error:
        # A model that used its tokens up for thinking has answered too.
        if error.reason != "OUTPUT_TRUNCATED":
            # What passes by itself is tried again, and no reason not to start.
            is_passing = error.retryable and error.reason in ("RATE_LIMITED", "OVERLOADED")
            mend = error.mend if isinstance(error, AddressError) else _mend(error.reason, where, endpoint)
            return Finding(subject, f"{place}: {error}", mend, is_optional=is_passing)
    finally:
        await models.aclose()
    finding = f"{place}: it answers, in {time.monotonic() - started_s:.1f} s"
    if isinstance(provider, HttpProvider) and (limit := provider.token_limit(request)) < request.token_limit:
        setting = settings.name_of("max_output_tokens")
        finding += f", and takes {limit} tokens for an answer, not the {request.token_limit} of {setting}"
    return Finding(subject, finding)


def _set_up(endpoint: providers.Endpoint | None, environment: Mapping[str, str]) -> str:
    if endpoint is None:
        return ""
    key, variable = endpoint.key_in(environment)
    address = endpoint.address_in(environment)
    how = f"with {variable}" if key else "without a key"
    if address.login:
        how = f"with the login in {endpoint.url_variable}"
    return f" at {address.shown()}, {how}"


def _mend(reason: str, where: str, endpoint: providers.Endpoint | None) -> str:
    """What to do about a model that failed for that reason; empty: it was silent."""
    if endpoint is None:
        return f"{how_to_install('llama', WEIGHTS)}, or {_OTHER_MODELS}"
    match reason:
        case "MODEL_UNAUTHENTICATED":
            variables = " or ".join(endpoint.key_variables) or endpoint.url_variable
            return f"set {variables} to a key that is valid and may use the model"
        case "MODEL_NOT_FOUND":
            return f"correct the model's name ({where}) or the address ({endpoint.url_variable})"
        case "RATE_LIMITED":
            return f"wait, or raise the limits of the account at {endpoint.name}"
        case "OVERLOADED":
            return "wait: calls that fail like this are tried again"
        case "CONNECTION_FAILED" | "CONNECT_TIMEOUT" | "":
            doubts = "whether it runs, and whether the network and the system's proxy let calls through"
            return f"see {doubts}, or correct {endpoint.url_variable}"
        case _:
            return f"choose another model ({where}), or correct {endpoint.url_variable}"


def _embedded(*, is_needed: bool) -> Finding:
    try:
        Llama().check(llama.MODEL)
    except SettingsError as error:
        finding, _, mend = str(error).rpartition(": ")
        return Finding("embedded model", finding, mend, is_optional=not is_needed)
    return Finding("embedded model", "server and weights are installed")


def _database(settings: Settings) -> Finding:
    path = Path(settings.database).absolute()
    setting = settings.name_of("database")
    other = f"set {setting} to another path"
    try:
        if path.exists():
            with path.open("r+b"):
                is_file = path.is_file()
        else:
            folder = next(parent for parent in path.parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                is_file = True
    except OSError as error:
        mend = f"{storage_faults.mend(error, path)}, or {other}"
        return Finding("database", f"{path} cannot be written: {error.strerror}", mend)
    if not is_file:
        return Finding("database", f"{path} is no file", other)
    found = " (found in this folder)" if settings.has_found_database else ""
    return Finding("database", f"{path}{found}{'' if path.exists() else ', to be made'}")


async def _rest_of(info: GetServiceInfoResponse) -> Finding:
    """Whether the service's REST answers where it says."""
    if not info.rest_address:
        return Finding("rest", "the service runs without it")
    found = await rest.service_id(info.rest_address)
    if found == info.service_id:
        return Finding("rest", f"{info.rest_address} is answered by the service")
    what = "another service answers there" if found else "it does not answer there"
    told = f"the service says {info.rest_address}, and from here {what}"
    return Finding("rest", told, "use gRPC, or forward that port too", is_optional=True)


def _port(name: str, address: str, setting: str, *, is_ours: bool = False) -> Finding:
    if is_ours:
        return Finding(name, f"{address} is answered by the service")
    host, port = split_address(address, setting)
    try:
        family, kind, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        mend = f"stop what listens there, or set {setting} to another address"
        return Finding(name, f"{address} cannot be listened on: {error.strerror}", mend)
    return Finding(name, f"{address} is free")
