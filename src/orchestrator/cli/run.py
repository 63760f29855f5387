"""`orchestrator run`: from a prompt to its answer, on the service that is there or on one of its own."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

from orchestrator.cli import reporters, rest
from orchestrator.cli.exits import ExitCode, complain
from orchestrator.cli.follow import come_back, detached, flags, follow
from orchestrator.cli.output import OutputError
from orchestrator.cli.progress import Progress
from orchestrator.cli.text import command, counted
from orchestrator.client import Client
from orchestrator.core.state import COMPLETE, TERMINAL, Instance
from orchestrator.settings import EMBEDDED_MODEL, Settings
from orchestrator.v1.instance_pb2 import InstanceConfig
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest

_BETTER_MODELS: Final = (
    "a tiny model that only shows how it works; for real answers set OPENAI_API_KEY, "
    "ORCHESTRATOR_BIG_MODEL=openai/… and ORCHESTRATOR_SMALL_MODEL=openai/…"
)


class Run:
    """One run. `progress` and `parting_words` are for whoever has to say how it was left."""

    def __init__(
        self, request: CreateInstanceRequest, settings: Settings, *, live: bool, as_json: bool
    ) -> None:
        self.progress = Progress()
        self._request = request
        self._settings = settings
        self._live = live
        self._as_json = as_json
        self._reporter = reporters.choose(as_json=as_json)
        self._has_own_service = False
        self._instance_id = ""

    async def perform(self) -> ExitCode:
        """Create the instance, follow it to its end and print the answer. SIGTERM cancels it."""
        task = asyncio.current_task()
        if task:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with self._service() as (client, rest_address):
            await self._create(client, rest_address)
            await follow(client, self._instance_id, self.progress, self._reporter, live=self._live)
        try:
            return self._answer(self.progress.instance)
        except OutputError as error:
            raise OutputError(f"{error}; the answer is kept as instance {self._instance_id}") from None

    @property
    def parting_words(self) -> str:
        """What becomes of the instance that nobody follows any more; empty where there is none."""
        if not self._instance_id or self.progress.instance.state in TERMINAL:
            return ""
        if not self._has_own_service:
            return detached(self._instance_id, self._settings, live=self._live)
        start = "up" + flags(
            self._settings,
            grpc_address="--grpc-address",
            rest_address="--rest-address",
            database="--database",
            big_model="--big-model",
            small_model="--small-model",
        )
        return (
            f"stopped: {self._instance_id} is kept in {self._settings.database} "
            "and goes on when the service starts again\n"
            f"  to start it:  {command(start)}\n"
            f"  to come back: {come_back(self._instance_id, self._settings, live=self._live)}"
        )

    @contextlib.asynccontextmanager
    async def _service(self) -> AsyncIterator[tuple[Client, str]]:
        """A client of the service that answers, and where REST does; else of one that runs just for this."""
        address = self._settings.grpc_address
        async with Client(address) as client:
            if await client.is_serving():
                self._reporter.note(f"using the service at {address} and its models")
                yield client, self._settings.rest_address
                return
        from orchestrator import app  # noqa: PLC0415  with a service there, all this is not needed

        self._has_own_service = True
        logging.basicConfig(level=self._settings.log_level.upper(), handlers=[_Noting(self._reporter)])
        database = self._settings.database_told
        self._reporter.note(f"no service at {address}: starting one for this run (events in {database})")
        async with app.running(self._settings, edge=True) as own, Client(own.grpc_address) as client:
            if own.taken_up:
                found = counted(own.taken_up, "unfinished instance")
                goes = "goes" if own.taken_up == 1 else "go"
                self._reporter.note(f"{found} of {database} {goes} on beside this one while it runs")
            yield client, own.rest_address

    async def _create(self, client: Client, rest_address: str) -> None:
        """Through REST, as any other client does; over gRPC where only that is served."""
        request = self._request
        if self._has_own_service or await rest.is_ready(rest_address):
            created = await rest.create(rest_address, request)
        else:
            self._reporter.note(f"REST does not answer at {rest_address}: creating the instance over gRPC")
            created = await client.create(
                request.prompt,
                instance_id=request.id,
                request_id=request.request_id,
                config=request.config,
                labels=request.labels,
            )
        self._instance_id = created.id
        config = created.instance.config
        self._reporter.note(_models_line(config))
        for name in ("big_model", "small_model"):
            wanted = getattr(self._settings, name)
            if wanted not in (getattr(config, name), getattr(Settings(), name)):
                setting = self._settings.name_of(name)
                self._reporter.note(
                    f"{setting} is {wanted} here, and the service was started without that: "
                    f"start it anew from here, or choose --{name.replace('_', '-')} {wanted}"
                )

    def _answer(self, instance: Instance) -> ExitCode:
        if instance.state != COMPLETE:
            error = instance.error
            complain(
                f"{error.reason}: {error.message}" if error else f"instance {instance.id} was terminated"
            )
            return ExitCode.FAILED
        if self._as_json:
            return ExitCode.DONE
        if sys.stdout.isatty():
            from orchestrator.cli.display import Answer  # noqa: PLC0415  Markdown is slow to import

            console = reporters.terminal()
            console.print()
            console.print(Answer(instance.final_result))
        else:
            sys.stdout.write(instance.final_result.removesuffix("\n") + "\n")
            sys.stdout.flush()
        return ExitCode.DONE


def _models_line(config: InstanceConfig) -> str:
    big, small = config.big_model, config.small_model
    models = f"{big} plans and works" if big == small else f"{big} plans, {small} works"
    return f"{models} ({_BETTER_MODELS})" if EMBEDDED_MODEL in (big, small) else models


class _Noting(logging.Handler):
    """Says what the service of our own logs without disturbing the drawing."""

    def __init__(self, reporter: reporters.Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.note(f"{record.levelname.lower()}: {self.format(record)}")


def quiet(settings: Settings) -> Settings:
    """The settings for a service of the command's own: only what is wrong is worth a line."""
    return replace(settings, log_level="error")
