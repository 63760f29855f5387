"""Where everything is wired together; nothing else knows all the parts."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, Never

from orchestrator.addresses import free_port, private_folder
from orchestrator.auth.authenticator import Authenticator
from orchestrator.auth.oidc import OidcIssuer
from orchestrator.auth.token_store import TokenStore
from orchestrator.client import Client
from orchestrator.core import config, workers
from orchestrator.edge import EdgeProcess, find_envoy
from orchestrator.edge import running as envoy_running
from orchestrator.engine.local import LocalEngine
from orchestrator.engine.observer import Observers
from orchestrator.errors import SettingsError
from orchestrator.installation import DISTRIBUTION
from orchestrator.log.retention import retain
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models import providers
from orchestrator.models.prices import Prices
from orchestrator.rpc.info import service_info
from orchestrator.rpc.meter import RpcMeter
from orchestrator.rpc.server import serving
from orchestrator.rpc.service import OrchestratorService
from orchestrator.settings import Settings
from orchestrator.telemetry import logs
from orchestrator.telemetry.metrics import Exposition, Metrics
from orchestrator.telemetry.operations import OperationsLog

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that answers, and where."""

    grpc_address: str
    log: SqliteEventLog
    envoy: EdgeProcess | None
    """None: without REST."""
    recovered: int
    """How many instances that an earlier service left unfinished go on."""

    async def watch(self) -> None:
        """Wait for as long as all parts run; raise what ended one of them."""
        await _wait_first(self.log.watch(), *([self.envoy.watch()] if self.envoy else []))

    @property
    def rest_address(self) -> str:
        """Where REST answers, `host:port`; empty: nowhere."""
        return self.envoy.address if self.envoy else ""

    @property
    def rest_url(self) -> str:
        """The same as a URL; empty: nowhere."""
        return self.envoy.url if self.envoy else ""


@asynccontextmanager
async def running(settings: Settings, *, edge: bool) -> AsyncIterator[RunningService]:
    """Run the service while the block runs, with Envoy in front of it when `edge` is true.

    Raise SettingsError or StorageError when it cannot start.
    """
    async with AsyncExitStack() as stack:
        # Whatever can be found wrong is found before unfinished instances are taken up, which costs money.
        prices = Prices.read(settings.prices)
        configured = providers.from_environment(os.environ, settings.idle_timeout_s)
        models = replace(configured, prices=prices)
        stack.push_async_callback(models.aclose)
        catalogue = workers.read(settings.workers)
        defaults = config.default(
            settings.big_model,
            settings.small_model,
            max_output_tokens=settings.max_output_tokens,
            max_crashes=settings.max_crashes,
        )
        for path, name in config.models(defaults, catalogue).items():
            try:
                models.check(name)
            except SettingsError as error:
                raise SettingsError(f"{settings.name_of(path)}: {error}") from None
        settings.check_exposure(edge=edge)
        authenticator = await stack.enter_async_context(_authenticator(settings))
        await _check_addresses(settings, edge=edge)
        metrics = Metrics(version(DISTRIBUTION))
        log = await SqliteEventLog.open(
            Path(settings.database), settings.name_of("database"), on_commit=metrics.on_commit
        )
        stack.push_async_callback(log.aclose)
        engine = await stack.enter_async_context(
            LocalEngine.running(
                log,
                models,
                max_active=settings.max_active_instances,
                max_queued=settings.max_queued_instances,
                max_calls=settings.max_concurrent_calls,
                observer=Observers([OperationsLog(), metrics]),
                quota=authenticator.quota,
            )
        )
        if settings.retention_s:
            await stack.enter_async_context(_in_background(retain(log, settings.retention_s)))
        if catalogue:
            defaults.catalogue = await engine.states.store_catalogue(catalogue)
        info = service_info(settings, defaults, catalogue)
        exposition = Exposition(metrics, log, engine)
        service = OrchestratorService(engine, log, defaults, info, exposition.render)
        await stack.enter_async_context(_in_background(metrics.probe_loop()))
        # Envoy starts after gRPC, which it looks for, and stops after it, so that REST calls can finish.
        edge_stack = await stack.enter_async_context(AsyncExitStack())
        edge_address = stack.enter_context(_edge_address()) if edge and settings.tls else ""
        address = await stack.enter_async_context(
            serving(
                service,
                log.notifier,
                settings.grpc_address,
                edge_address=edge_address,
                authenticator=authenticator,
                interceptors=(RpcMeter(metrics.on_rpc_ended),),
                tls=settings.tls,
            )
        )
        service.info.grpc_address = address
        envoy = None
        if edge:
            envoy = await edge_stack.enter_async_context(
                envoy_running(
                    rest_address=settings.rest_address,
                    grpc_address=edge_address or address,
                    origins=settings.origins,
                    hosts=settings.hosts,
                    tls=settings.tls,
                    access_log=settings.access_log,
                    max_requests_per_second=settings.max_requests_per_second,
                    asks_for_credentials=authenticator.is_required,
                )
            )
            service.info.rest_address = envoy.address
        yield RunningService(address, log, envoy, engine.recovered)


@asynccontextmanager
async def _authenticator(settings: Settings) -> AsyncIterator[Authenticator]:
    """Find out who calls as the settings say; raise SettingsError where what they name cannot be used."""
    store = issuer = None
    if settings.auth_tokens_file:
        store = TokenStore.open(Path(settings.auth_tokens_file))
    if settings.auth_oidc_issuer:
        issuer = OidcIssuer(
            settings.auth_oidc_issuer,
            settings.auth_oidc_audience,
            tenant_claim=settings.auth_oidc_tenant_claim,
            role_claim=settings.auth_oidc_role_claim,
        )
    try:
        yield Authenticator(store, issuer)
    finally:
        if store:
            await store.aclose()


async def _check_addresses(settings: Settings, *, edge: bool) -> None:
    """Raise SettingsError where one cannot be listened on, or REST is not there to do so."""
    addresses = ["grpc_address", *(["rest_address"] if edge else [])]
    if edge:
        find_envoy()
    try:
        for name in addresses:
            free_port(getattr(settings, name), settings.name_of(name))
    except SettingsError:
        async with Client(settings.grpc_address) as client:
            if not await client.is_serving():
                raise
        own = [settings.name_of(name) for name in (*addresses, "database")]
        raise SettingsError(
            f"already running: an orchestrator answers at {settings.grpc_address}. Use that one, stop it, or "
            f"give this one its own {', '.join(own[:-1])} and {own[-1]}"
        ) from None


@contextmanager
def _edge_address() -> Iterator[str]:
    """Yield a socket's address that no other user reaches: where Envoy need not be a client with TLS."""
    with private_folder() as folder:
        yield f"unix:{folder}/grpc.sock"


@asynccontextmanager
async def _in_background(work: Coroutine[None, None, Never]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def tune_garbage_collector() -> None:
    """Let the garbage collector run less often, for this process.

    States are many small values that live long and hold no cycles: with Python's defaults, looking through
    them took a quarter of the time in `benchmarks/engine.py`. The first number is large, so that most of what
    an instance needs for a moment is gone before anything is looked through. The first two together bound how
    long the loop stands still for it: 240,000 objects took up to 145 ms on a busy machine, with (20,000, 50)
    it was 300 to 600.
    """
    gc.freeze()
    gc.set_threshold(80_000, 1, 100)


def quiet_library_loggers() -> None:
    """Let no library write down what passes through it: prompts, and what is secret in an address."""
    for chatty in ("aiosqlite", "httpx", "httpcore", "asyncio", "grpc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


async def serve(settings: Settings) -> None:
    """Run the gRPC service until SIGTERM, SIGINT or SIGHUP."""
    await _until_signalled(settings, edge=False)


async def up(settings: Settings) -> None:
    """Run the gRPC service with Envoy in front of it until SIGTERM, SIGINT or SIGHUP."""
    await _until_signalled(settings, edge=True)


async def _until_signalled(settings: Settings, *, edge: bool) -> None:
    quiet_library_loggers()
    tune_garbage_collector()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    with _logged(settings):
        async with running(settings, edge=edge) as service:
            _log_start(settings, service)
            _print_ready(settings, service)
            try:
                await _wait_first(stop.wait(), service.watch())
            except Exception as error:
                # The command says it too, but not to those who read the log.
                _LOGGER.error("service failed", extra={"fields": {"cause": str(error)}})  # noqa: TRY400  the cause, no traceback
                raise
            _LOGGER.info("service stopping")
        _LOGGER.info("service stopped")


def _print_ready(settings: Settings, service: RunningService) -> None:
    url, models = service.rest_url, dict.fromkeys((settings.big_model, settings.small_model))
    rest = f"REST on {url}, the page on {url}/-/ui/, " if url else ""
    sys.stdout.write(
        f"ready: {rest}gRPC on {service.grpc_address}, events in {settings.database_description}, "
        f"{'models' if len(models) > 1 else 'model'} {' and '.join(models)}; Ctrl-C stops\n"
    )
    if service.recovered:
        sys.stdout.write(f"going on with what is unfinished there: {service.recovered}\n")
    sys.stdout.flush()


def _logged(settings: Settings) -> AbstractContextManager[None]:
    """Write this process's log lines while the block runs."""
    keys = [endpoint.key_in(os.environ)[0] for endpoint in providers.ENDPOINTS]
    return logs.logging_to(
        sys.stderr.fileno(), level=settings.log_level, style=settings.log_format, secrets=keys
    )


def _log_start(settings: Settings, service: RunningService) -> None:
    fields = {
        "version": version(DISTRIBUTION),
        "engine": settings.engine,
        "grpc_address": service.grpc_address,
        "rest_address": service.rest_address or None,
        "database": settings.database,
        "big_model": settings.big_model,
        "small_model": settings.small_model,
        "recovered": service.recovered,
        "settings": dict(settings.sources),
    }
    _LOGGER.info(
        "service started", extra={"fields": {name: it for name, it in fields.items() if it is not None}}
    )


async def _wait_first(*waits: Coroutine[None, None, object]) -> None:
    """Wait for whatever ends first, and raise what it raises."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
