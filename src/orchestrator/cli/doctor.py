"""Checks of what the service needs; each finding says how to mend it."""

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

from orchestrator.auth import token_file
from orchestrator.cli import rest, service_settings
from orchestrator.cli.connection import open_client
from orchestrator.cli.reporters import build_console
from orchestrator.cli.text import one_line
from orchestrator.core import replies, workers
from orchestrator.core.prompts import Message, Prompt
from orchestrator.errors import AddressError, ModelError, SettingsError
from orchestrator.installation import DISTRIBUTION, WEIGHTS, how_to_install
from orchestrator.log import storage_faults
from orchestrator.models import llama, providers
from orchestrator.models.base import ModelRequest
from orchestrator.models.http.endpoint import HttpProvider
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
_MIN_FINDING_WIDTH: Final = 30
"""Columns of a finding: where they are fewer beside its subject, it stands below."""
_PROBE_PROMPT: Final = Prompt("work", (Message("user", "Answer with one word: hello."),), may_be_cut=True)
"""Asked with as many tokens as a real call, to see whether the endpoint takes them; few are used."""
_SHORT_PROBE_PROMPT: Final = _PROBE_PROMPT._replace(max_output_tokens=16)
"""For the embedded model, which takes any number and may go on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `mend` is empty where nothing is wrong."""

    subject: str
    finding: str
    mend: str = ""
    is_optional: bool = False

    @property
    def is_broken(self) -> bool:
        """Whether the service cannot do its work like this."""
        return bool(self.mend) and not self.is_optional


async def run_checks(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Run all checks; raise SettingsError where a setting cannot be read."""
    Prices.read(settings.prices)
    async with open_client(settings.grpc_address, settings) as client:
        is_serving = await client.is_serving()
        info = await service_settings.fetch_info(client) if is_serving else None
    roles = _service_roles(info) if info else _settings_roles(settings)
    if info:
        # Whether the service can call them hangs on its own variables, which this terminal does not see.
        theirs = replace(settings, max_output_tokens=info.default_config.max_output_tokens)
        found = await _check_models(roles, theirs, environment)
        models = [replace(check, finding=f"{_CALLED}: {check.finding}", is_optional=True) for check in found]
        rest_finding = await _check_service_rest(info, settings)
    else:
        models = await _check_models(roles, settings, environment)
        rest_finding = _check_port("rest", settings.rest_address, settings.name_of("rest_address"))
    database = _check_database(settings)
    is_needed = not info and any(model.startswith("llama/") for model, _ in roles.values())
    return [
        _check_python(),
        _check_envoy(),
        *(_check_service(settings, info) if info else ()),
        *models,
        _check_embedded_model(is_needed=is_needed),
        *(() if info else _check_access(settings)),
        replace(database, finding=f"{_FROM_HERE}: {database.finding}") if info else database,
        await _check_grpc(settings, is_serving=is_serving),
        rest_finding,
    ]


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print a checklist, or one JSON object."""
    if as_json:
        checks = [
            {
                "subject": check.subject,
                "status": "broken" if check.is_broken else "warning" if check.mend else "ok",
                "finding": check.finding,
                "mend": check.mend,
            }
            for check in findings
        ]
        print(json.dumps({"ok": not any(check.is_broken for check in findings), "checks": checks}))  # noqa: T201
        return
    console = build_console()
    # A word that is too long for a line, such as a path, is left to the terminal: it can be copied whole.
    for line in checklist_lines(findings, console.width if console.is_terminal else _NO_WRAPPING):
        console.print(line, soft_wrap=True)


def checklist_lines(findings: list[Finding], width: int) -> Iterator[Text]:
    """Format the checklist for that many columns, broken between words."""
    room = max(len(check.subject) for check in findings)
    indent = room + 4
    if is_narrow := width - indent < _MIN_FINDING_WIDTH:
        indent = 2
    for check in findings:
        sign, style = ("✗", "red") if check.is_broken else ("!", "yellow") if check.mend else ("✓", "green")
        head = Text(f"{sign} ", style=style).append(f"{check.subject:<{room}}  ", style="bold")
        texts = [(line, "default") for line in _wrapped(check.finding, width - indent)]
        texts += [(line, "dim") for line in _wrapped(check.mend, width - indent)]
        if not is_narrow:
            head.append(*texts.pop(0))
        head.rstrip()
        yield head
        for text, dimness in texts:
            yield Text(" " * indent).append(text, style=dimness)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width, break_long_words=False, break_on_hyphens=False)


def _check_python() -> Finding:
    version = sys.version_info[:3]
    name = ".".join(map(str, version))
    mend = "" if version >= OLDEST_PYTHON else "install it with Python 3.11 or later"
    return Finding("python", f"{name} at {sys.executable}", mend)


def _check_envoy() -> Finding:
    scripts_folder = Path(sys.executable).parent
    path = shutil.which("envoy", path=str(scripts_folder)) or shutil.which("envoy")
    if path:
        return Finding("envoy", path)
    return Finding("envoy", "not found: there is no REST", how_to_install("envoy"))


def _check_service(settings: Settings, info: GetServiceInfoResponse) -> Iterator[Finding]:
    """Give the settings of the service, and where those of this terminal differ."""
    models, ours = info.models, version(DISTRIBUTION)
    names = f"big model {models.big_model}, small model {models.small_model}"
    mend = f"this command is {ours}: start the service anew" if ours != info.version else ""
    yield Finding("service", f"{info.version} at {settings.grpc_address}, {names}", mend, is_optional=True)
    for found in (
        service_settings.model_differences(settings, models),
        service_settings.setting_differences(settings, info),
    ):
        for difference, mend in found:
            yield Finding("service", difference, mend, is_optional=True)


_Roles: TypeAlias = Mapping[str, tuple[str, str]]
"""By role: the model, and the setting that names it."""


def _settings_roles(settings: Settings) -> _Roles:
    roles = {
        "big model": (settings.big_model, settings.name_of("big_model")),
        "small model": (settings.small_model, settings.name_of("small_model")),
    }
    for number, worker in enumerate(workers.read(settings.workers)):
        if worker.model:
            roles[f"worker {worker.name}"] = (worker.model, settings.name_of(f"workers[{number}].model"))
    return roles


def _service_roles(info: GetServiceInfoResponse) -> _Roles:
    names = {"big model": info.models.big_model, "small model": info.models.small_model}
    names |= {f"worker {worker.name}": worker.model for worker in info.workers if worker.model}
    return {role: (name, "where the service is started") for role, name in names.items()}


async def _check_models(roles: _Roles, settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """Check that each model answers; call one that is set twice only once."""
    settings_by_model: dict[str, list[str]] = {}
    for name, setting_name in roles.values():
        settings_by_model.setdefault(name, []).append(setting_name)
    calls = (
        _check_model(name, ", ".join(dict.fromkeys(setting_names)), settings, environment)
        for name, setting_names in settings_by_model.items()
    )
    found = dict(zip(settings_by_model, await asyncio.gather(*calls), strict=True))
    return [replace(found[name], subject=role) for role, (name, _) in roles.items()]


async def _check_model(
    name: str, setting_names: str, settings: Settings, environment: Mapping[str, str]
) -> Finding:
    """Call a model once, for a word; `setting_names` are the settings that name it."""
    subject = "model"
    try:
        models = providers.from_environment(environment)
        provider, model = models.resolve(name)
        provider.check(model)
    except SettingsError as error:
        return Finding(subject, f"{name} cannot be called", f"{error} ({setting_names})")
    endpoint = next((each for each in providers.ENDPOINTS if name.startswith(f"{each.name}/")), None)
    target = f"{name}{_endpoint_note(endpoint, environment)}"
    prompt = _PROBE_PROMPT if endpoint else _SHORT_PROBE_PROMPT
    request = ModelRequest(model, prompt, settings.max_output_tokens, timeout_s=2 * CALL_TIMEOUT_S)
    pieces: list[str] = []

    def on_text(piece: str, *, is_restart: bool = False) -> None:  # noqa: ARG001  any piece is a sign of life
        pieces.append(piece)

    started_s = time.monotonic()
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            reply = await provider.complete(request, on_text)
        if failure := replies.find_failure(reply, prompt, model):
            raise failure
    except TimeoutError:
        if pieces:
            return Finding(subject, f"{target}: it answers, slowly")
        finding = f"{target} gave no answer within {CALL_TIMEOUT_S:g} s"
        mend = f"try again, for it may have to load; otherwise {_mend('', setting_names, endpoint)}"
        return Finding(subject, finding, mend)
    except ModelError as error:
        # A model that used its tokens up for thinking has answered too.
        if error.reason != "OUTPUT_TRUNCATED":
            # What passes by itself is tried again, and no reason not to start.
            is_transient = error.retryable and error.reason in ("RATE_LIMITED", "OVERLOADED")
            mend = (
                error.mend
                if isinstance(error, AddressError)
                else _mend(error.reason, setting_names, endpoint)
            )
            return Finding(subject, f"{target}: {error}", mend, is_optional=is_transient)
    finally:
        await models.aclose()
    finding = f"{target}: it answers, in {time.monotonic() - started_s:.1f} s"
    if isinstance(provider, HttpProvider) and (limit := provider.token_limit(request)) < request.token_limit:
        setting = settings.name_of("max_output_tokens")
        finding += f", and takes {limit} tokens for an answer, not the {request.token_limit} of {setting}"
    return Finding(subject, finding)


def _endpoint_note(endpoint: providers.Endpoint | None, environment: Mapping[str, str]) -> str:
    if endpoint is None:
        return ""
    key, variable = endpoint.key_in(environment)
    address = endpoint.address_in(environment)
    credential = f"with {variable}" if key else "without a key"
    if address.login:
        credential = f"with the login in {endpoint.url_variable}"
    return f" at {address.shown()}, {credential}"


def _mend(reason: str, setting_names: str, endpoint: providers.Endpoint | None) -> str:
    """Return how to mend a model that failed for that reason; an empty reason: no answer in time."""
    if endpoint is None:
        return f"{how_to_install('llama', WEIGHTS)}, or {_OTHER_MODELS}"
    match reason:
        case "MODEL_UNAUTHENTICATED":
            variables = " or ".join(endpoint.key_variables) or endpoint.url_variable
            return f"set {variables} to a key that is valid and may use the model"
        case "MODEL_NOT_FOUND":
            return f"correct the model's name ({setting_names}) or the address ({endpoint.url_variable})"
        case "RATE_LIMITED":
            return f"wait, or raise the limits of the account at {endpoint.name}"
        case "OVERLOADED":
            return "wait: calls that fail like this are tried again"
        case "CONNECTION_FAILED" | "CONNECT_TIMEOUT" | "":
            doubts = "whether it runs, and whether the network and the system's proxy let calls through"
            return f"see {doubts}, or correct {endpoint.url_variable}"
        case _:
            return f"choose another model ({setting_names}), or correct {endpoint.url_variable}"


def _check_embedded_model(*, is_needed: bool) -> Finding:
    try:
        Llama().check(llama.MODEL)
    except SettingsError as error:
        finding, _, mend = str(error).rpartition(": ")
        return Finding("embedded model", finding, mend, is_optional=not is_needed)
    return Finding("embedded model", "server and weights are installed")


def _check_access(settings: Settings) -> Iterator[Finding]:
    """Check what decides who reaches a service that is started from here, where that is set."""
    try:
        settings.check_exposure(edge=True)
    except SettingsError as error:
        finding, _, mend = str(error).partition(": ")
        yield Finding("access", finding, mend)
    if settings.auth_tokens_file:
        name, path = settings.name_of("auth_tokens_file"), Path(settings.auth_tokens_file)
        try:
            count = len(token_file.load(path).tokens)
        except SettingsError as error:
            yield Finding("tokens", str(error), f"correct it, or {name}")
        else:
            mend = "" if count else "make one with `orchestrator token new`"
            yield Finding("tokens", f"{count} in {path}", mend, is_optional=bool(settings.auth_oidc_issuer))
    if tls := settings.tls:
        try:
            tls.read()
        except SettingsError as error:
            finding, _, mend = str(error).partition(": ")
            yield Finding("tls", finding, mend or "correct the files")
        else:
            yield Finding("tls", f"{settings.tls_cert} and its key")


def _check_database(settings: Settings) -> Finding:
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
    found = " (found in this folder)" if settings.uses_earlier_database else ""
    return Finding("database", f"{path}{found}{'' if path.exists() else ', to be made'}")


async def _check_service_rest(info: GetServiceInfoResponse, settings: Settings) -> Finding:
    """Check that the REST of the service answers at the address that it reports."""
    if not info.rest_address:
        return Finding("rest", "the service runs without it")
    found = await rest.service_id(info.rest_address, settings)
    if found == info.service_id:
        return Finding("rest", f"{info.rest_address} is answered by the service")
    what = "another service answers there" if found else "it does not answer there"
    finding = f"the service says {info.rest_address}, and from here {what}"
    return Finding("rest", finding, "use gRPC, or forward that port too", is_optional=True)


async def _check_grpc(settings: Settings, *, is_serving: bool) -> Finding:
    address = settings.grpc_address
    if not is_serving and (error := await rest.http_error(address)):
        finding, _, mend = str(error).partition(": ")
        return Finding("grpc", finding, mend)
    return _check_port("grpc", address, settings.name_of("grpc_address"), is_ours=is_serving)


def _check_port(name: str, address: str, setting: str, *, is_ours: bool = False) -> Finding:
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
