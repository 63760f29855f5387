"""`orchestrator run`: from a prompt to its answer, on the service that is there or on one of its own."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import typer

from orchestrator.cli import asking, reporters, rest, service_settings
from orchestrator.cli.exit_codes import ExitCode, print_error
from orchestrator.cli.follow import address_flag, detached, flags, follow, resume_command, review_is_due
from orchestrator.cli.output import OutputError
from orchestrator.cli.progress import Progress
from orchestrator.cli.tables import print_plan
from orchestrator.cli.text import command, counted
from orchestrator.client import Client
from orchestrator.core.instance import COMPLETE, TERMINAL, WAITING, Instance
from orchestrator.installation import requires
from orchestrator.settings import EMBEDDED_MODEL, Settings
from orchestrator.v1.instance_pb2 import InstanceConfig
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest, GetServiceInfoResponse

_BETTER_MODELS: Final = (
    "a tiny model that only shows how it works; for real answers set OPENAI_API_KEY, "
    "ORCHESTRATOR_BIG_MODEL=openai/… and ORCHESTRATOR_SMALL_MODEL=openai/…"
)


class Run:
    """One run. `progress` and `exit_message` are for whoever has to say how it was left.

    With `ends_with_plan` a plan that waits for review is printed where nobody can be asked, and that is all.
    """

    def __init__(
        self,
        request: CreateInstanceRequest,
        settings: Settings,
        *,
        live: bool,
        as_json: bool,
        ends_with_plan: bool = False,
    ) -> None:
        self.progress = Progress()
        self._request = request
        self._settings = settings
        self._live = live
        self._as_json = as_json
        self._ends_with_plan = ends_with_plan
        self._reporter = reporters.choose(as_json=as_json, where=address_flag(settings))
        self._keys = None if as_json else asking.keyboard()
        self._has_own_service = False
        self._instance_id = ""

    async def perform(self) -> ExitCode:
        """Create the instance, follow it to its end and print the answer. SIGTERM cancels it."""
        task = asyncio.current_task()
        if task:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with self._service() as client:
            await self._create(client)
            while not await self._followed(client):
                if not await self._reviewed(client):
                    typer.echo(self.exit_message, err=True)
                    return ExitCode.DONE
        try:
            return self._answer(self.progress.instance)
        except OutputError as error:
            where = address_flag(self._settings)
            read = command(f"result {self._instance_id}{where}")
            later = ", once the service is up again" if self._has_own_service else ""
            raise OutputError(f"{error}; the answer is kept: `{read}`{later}") from None

    @property
    def exit_message(self) -> str:
        """What becomes of the instance that nobody follows any more; empty where there is none."""
        state = self.progress.instance.state
        if not self._instance_id or state in TERMINAL:
            return ""
        due = review_is_due(self._instance_id, self._settings) if state == WAITING else ""
        if not self._has_own_service:
            return due or detached(self._instance_id, self._settings, live=self._live)
        start = "up" + flags(
            self._settings,
            grpc_address="--address",
            rest_address="--rest-address",
            database="--database",
            big_model="--big-model",
            small_model="--small-model",
        )
        kept = f"{self._instance_id} is kept in {self._settings.database}"
        lines = (
            f"stopped: {kept} and goes on when the service starts again",
            f"  to start it:  {command(start)}",
            f"  to come back: {resume_command(self._instance_id, self._settings, live=self._live)}",
            due,
        )
        return "\n".join(line for line in lines if line)

    @contextlib.asynccontextmanager
    async def _service(self) -> AsyncIterator[Client]:
        """A client of the service that answers; else of one that runs just for this."""
        address = self._settings.grpc_address
        async with Client(address) as client:
            if await client.is_serving():
                self._reporter.note(f"using the service at {address} and its models")
                yield client
                return
        with requires("server", f"no service answers at {address}, and to start one `orchestrator run`"):
            from orchestrator import app  # noqa: PLC0415  with a service there, all this is not needed

        self._has_own_service = True
        logging.basicConfig(level=self._settings.log_level.upper(), handlers=[_Noting(self._reporter)])
        app.hush_libraries()
        database = self._settings.database_told
        self._reporter.note(f"no service at {address}: starting one for this run (events in {database})")
        async with app.running(self._settings, edge=True) as own, Client(own.grpc_address) as client:
            if own.recovered:
                found = counted(own.recovered, "unfinished instance")
                goes = "goes" if own.recovered == 1 else "go"
                self._reporter.note(f"{found} of {database} {goes} on beside this one while it runs")
            yield client

    async def _create(self, client: Client) -> None:
        """Through REST, as any other client does, where that leads to this very service; else over gRPC."""
        request = self._request
        info = await service_settings.ask(client)
        rest_address = await self._rest_address(info)
        if rest_address:
            created = await rest.create(rest_address, request)
        else:
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
        if rest_address:
            while_it_runs = " while this runs" if self._has_own_service else ""
            self._reporter.note(
                f"to see it{while_it_runs}: {rest.url(rest_address)}/-/ui/#/instances/{created.id}"
            )
        if not self._has_own_service:
            found = [*service_settings.model_differences(self._settings, config)]
            found += service_settings.differences(self._settings, info) if info else ()
            for difference, mend in found:
                self._reporter.note(f"{difference}: {mend}")

    async def _rest_address(self, info: GetServiceInfoResponse | None) -> str:
        """Where the service says that its REST is, if it does and is; another one's is never used."""
        if info is None:
            why = "the service does not say where REST is"
        elif not info.rest_address:
            why = "the service has no REST"
        else:
            found = await rest.service_id(info.rest_address)
            if found == info.service_id:
                return info.rest_address
            what = "another service answers" if found else "REST does not answer"
            why = f"{what} at {info.rest_address}"
        self._reporter.note(f"{why}: creating the instance over gRPC")
        return ""

    async def _followed(self, client: Client) -> bool:
        """Follow the instance; whether it has ended, or else waits for a review."""
        await follow(
            client,
            self._instance_id,
            self.progress,
            self._reporter,
            after=self.progress.instance.last_sequence,
            until_review=True,
            live=self._live,
        )
        return self.progress.instance.state in TERMINAL

    async def _reviewed(self, client: Client) -> bool:
        """Have the plan reviewed, if nobody has yet; whether to go on."""
        found = (await client.get(self._instance_id, full=True)).instance
        if found.state != WAITING:
            return True
        if self._keys:
            typer.echo()
            print_plan(found)
            return await asking.decide(client, found, self._keys)
        if self._ends_with_plan:
            if not self._as_json:  # whose events tell it
                print_plan(found)
            return False
        review = command(f"review {self._instance_id}{address_flag(self._settings)}")
        self._reporter.note(f"the plan waits for review: {review}")
        return True

    def _answer(self, instance: Instance) -> ExitCode:
        if instance.state != COMPLETE:
            error = instance.error
            print_error(
                f"{error.reason}: {error.message}" if error else f"instance {instance.id} was terminated"
            )
            return ExitCode.FAILED
        if self._as_json:
            return ExitCode.DONE
        if sys.stdout.isatty():
            from orchestrator.cli.answer import Answer  # noqa: PLC0415  Markdown is slow to import

            console = reporters.terminal()
            console.print()
            Answer(instance.final_result).print_on(console)
        else:
            reporters.print_markdown(instance.final_result)
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
