"""`orchestrator run`: from a prompt to its answer, on a running service or on one of its own."""

import asyncio
import contextlib
import logging
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import typer

from orchestrator.cli import plan_decision, reporters, rest, service_settings
from orchestrator.cli.connection import full_id_of, open_client
from orchestrator.cli.exit_codes import ExitCode, NoServiceError, UsageError, print_error
from orchestrator.cli.follow import (
    address_option,
    detached_message,
    follow,
    resume_command,
    review_due_message,
    settings_options,
)
from orchestrator.cli.output import OutputError
from orchestrator.cli.progress import Progress
from orchestrator.cli.tables import print_plan
from orchestrator.cli.text import command, pluralize
from orchestrator.cli.tls import tls_problem
from orchestrator.client import Client
from orchestrator.core.instance import COMPLETE, TERMINAL, WAITING, Instance
from orchestrator.errors import SettingsError
from orchestrator.installation import requires
from orchestrator.settings import EMBEDDED_MODEL, Settings, is_loopback, split_address
from orchestrator.v1.instance_pb2 import InstanceConfig
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest, GetServiceInfoResponse

_BETTER_MODELS: Final = (
    "a tiny model that only shows how it works; for real answers set OPENAI_API_KEY, "
    "ORCHESTRATOR_BIG_MODEL=openai/… and ORCHESTRATOR_SMALL_MODEL=openai/…"
)


class Target(NamedTuple):
    """Where the files of the result are written."""

    folder: Path
    shows_diff: bool = False
    force: bool = False


class Runner:
    """One execution of the command; `exit_message` says what becomes of an unfinished instance.

    With `stops_at_plan` a plan that waits for review is printed and ends the run where there is no terminal.
    """

    def __init__(
        self,
        request: CreateInstanceRequest,
        settings: Settings,
        *,
        live: bool,
        as_json: bool,
        stops_at_plan: bool = False,
        continues: str = "",
        target: Target | None = None,
    ) -> None:
        self.progress = Progress()
        self._request = request
        self._settings = settings
        self._live = live
        self._as_json = as_json
        self._stops_at_plan = stops_at_plan
        self._continues = continues
        self._target = target
        self._reporter = reporters.choose_reporter(as_json=as_json, address_option=address_option(settings))
        self._keyboard = None if as_json else plan_decision.open_keyboard()
        self._owns_service = False
        self._has_rest = True
        self._instance_id = ""
        self._shown_sequence: int | None = None
        """The event at which a plan was shown that waits for review."""

    async def run(self) -> ExitCode:
        """Create the instance, follow it to its end and print the answer. SIGTERM cancels it."""
        task = asyncio.current_task()
        if task:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with self._connect_or_start() as client:
            await self._create_instance(client)
            while not await self._follow(client):
                if not await self._review(client):
                    typer.echo(self.exit_message, err=True)
                    return ExitCode.DONE
            not_written = None
            if self._target and self.progress.instance.state == COMPLETE:
                not_written = await self._write_files(client, self._target)
        try:
            code = self._print_answer(self.progress.instance)
        except OutputError as error:
            option = address_option(self._settings)
            result_command = command(f"result {self._instance_id}{option}")
            later = ", once the service is up again" if self._owns_service else ""
            raise OutputError(f"{error}; the answer is kept: `{result_command}`{later}") from None
        if not_written:
            raise not_written
        return code

    @property
    def exit_message(self) -> str:
        """Say what becomes of an instance that is no longer followed; empty where there is none."""
        state = self.progress.instance.state
        if not self._instance_id or state in TERMINAL:
            return ""
        due = ""
        if state == WAITING:
            due = review_due_message(self._instance_id, self._settings, sequence=self._shown_sequence)
        if not self._owns_service:
            return due or detached_message(self._instance_id, self._settings, live=self._live)
        rest_option = {"rest_address": "--rest-address"} if self._has_rest else {}
        start = ("up" if self._has_rest else "serve") + settings_options(
            self._settings,
            grpc_address="--address",
            **rest_option,
            database="--database",
            big_model="--big-model",
            small_model="--small-model",
        )
        location = f"{self._instance_id} is kept in {self._settings.database}"
        lines = (
            f"stopped: {location} and goes on when the service starts again",
            f"  to start it:  {command(start)}",
            f"  to come back: {resume_command(self._instance_id, self._settings, live=self._live)}",
            due,
        )
        return "\n".join(line for line in lines if line)

    @contextlib.asynccontextmanager
    async def _connect_or_start(self) -> AsyncIterator[Client]:
        """Connect to the service that answers, or start one for this run."""
        address = self._settings.grpc_address
        async with open_client(address, self._settings) as client:
            if await client.is_serving():
                self._reporter.note(f"using the service at {address} and its models")
                yield client
                return
        if problem := await tls_problem(address, self._settings):
            raise NoServiceError(problem)
        if error := await rest.http_error(address):
            raise error
        if not is_loopback(split_address(address, self._settings.name_of("grpc_address"))[0]):
            raise NoServiceError(
                f"no service answers at {address}, and one for this run alone is on loopback"
            )
        with requires("server", f"no service answers at {address}, and to start one `orchestrator run`"):
            from orchestrator import app  # noqa: PLC0415  with a service there, all this is not needed

        self._owns_service = True
        # On loopback, for as long as the run: TLS would protect nothing.
        self._settings = replace(
            self._settings,
            tls_cert="",
            tls_key="",
            tls_client_ca="",
            tls_ca="",
            tls_client_cert="",
            tls_client_key="",
        )
        logging.basicConfig(level=self._settings.log_level.upper(), handlers=[_NotingHandler(self._reporter)])
        app.quiet_library_loggers()
        database = self._settings.database_description
        self._reporter.note(f"no service at {address}: starting one for this run (events in {database})")
        self._make_rest_optional()
        async with (
            app.running(self._settings, edge=self._has_rest) as own,
            open_client(own.grpc_address, self._settings) as client,
        ):
            if own.recovered:
                found = pluralize(own.recovered, "unfinished instance")
                goes = "goes" if own.recovered == 1 else "go"
                self._reporter.note(f"{found} of {database} {goes} on beside this one while it runs")
            yield client

    def _make_rest_optional(self) -> None:
        """Take a free port for REST where the default is taken, and no REST where there is no Envoy.

        A run needs neither. An address that is set is kept: clients may expect REST there.
        """
        from orchestrator import addresses, edge  # noqa: PLC0415

        settings = self._settings
        if "rest_address" in settings.sources:
            return
        try:
            edge.find_envoy()
        except SettingsError:
            self._has_rest = False
            self._reporter.note("no envoy is installed: this run has no REST and no page")
            return
        try:
            addresses.free_port(settings.rest_address, settings.name_of("rest_address"))
        except SettingsError:
            self._reporter.note(f"{settings.rest_address} is taken: REST of this run takes a free port")
            any_port = f"{settings.rest_address.rpartition(':')[0]}:0"
            self._settings = replace(settings, rest_address=any_port)

    async def _create_instance(self, client: Client) -> None:
        """Create the instance through REST where that reaches this service, else over gRPC."""
        request = self._request
        request.continues = await full_id_of(client, self._continues)
        info = await service_settings.fetch_info(client)
        rest_address = await self._rest_address(info)
        if rest_address:
            created = await rest.create(rest_address, request, self._settings)
        else:
            created = await client.create(
                request.prompt,
                instance_id=request.id,
                request_id=request.request_id,
                config=request.config,
                labels=request.labels,
                files=request.files,
                continues=request.continues,
            )
        self._instance_id = created.id
        config = created.instance.config
        self._reporter.note(_models_line(config))
        if rest_address:
            while_it_runs = " while this runs" if self._owns_service else ""
            url = rest.base_url(rest_address, self._settings)
            self._reporter.note(f"to see it{while_it_runs}: {url}/-/ui/#/instances/{created.id}")
        if not self._owns_service:
            found = [*service_settings.model_differences(self._settings, config)]
            found += service_settings.setting_differences(self._settings, info) if info else ()
            for difference, mend in found:
                self._reporter.note(f"{difference}: {mend}")

    async def _rest_address(self, info: GetServiceInfoResponse | None) -> str:
        """Return the REST address that the service reports, if this service answers there; else empty."""
        if info is None:
            reason = "the service does not say where REST is"
        elif not info.rest_address:
            reason = "the service has no REST"
        else:
            found = await rest.service_id(info.rest_address, self._settings)
            if found == info.service_id:
                return info.rest_address
            problem = "another service answers" if found else "REST does not answer"
            reason = f"{problem} at {info.rest_address}"
        self._reporter.note(f"{reason}: creating the instance over gRPC")
        return ""

    async def _follow(self, client: Client) -> bool:
        """Follow the instance; return whether it has ended rather than waits for review."""
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

    async def _review(self, client: Client) -> bool:
        """Have the plan reviewed if it still waits for that; return whether to go on."""
        found = (await client.get(self._instance_id, full=True)).instance
        if found.state != WAITING:
            return True
        if self._keyboard:
            self._shown_sequence = found.last_sequence
            typer.echo()
            print_plan(found)
            return await plan_decision.ask_for_decision(client, found, self._keyboard)
        if self._stops_at_plan:
            self._shown_sequence = found.last_sequence
            if not self._as_json:  # whose events tell it
                print_plan(found)
            return False
        review = command(f"review {self._instance_id}{address_option(self._settings)}")
        self._reporter.note(f"the plan waits for review: {review}")
        return True

    async def _write_files(self, client: Client, target: Target) -> UsageError | None:
        """Write the result's files; return why they were not written."""
        from orchestrator.cli import result_files  # noqa: PLC0415

        files = await result_files.fetch(client, self._instance_id)
        if not files.contents:
            self._reporter.note("the result has no files: nothing was written")
            return None
        diff_output = sys.stderr if target.shows_diff else None
        try:
            result_files.bring(files, target.folder, force=target.force, diff_output=diff_output)
        except UsageError as error:
            later = ", once the service is up again" if self._owns_service else ""
            again = command(
                f"files {self._instance_id} --out {shlex.quote(str(target.folder))} --force"
                f"{address_option(self._settings)}"
            )
            return UsageError(f"{error}; the result is kept: `{again}`{later}")
        return None

    def _print_answer(self, instance: Instance) -> ExitCode:
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

            console = reporters.build_console()
            console.print()
            Answer(instance.final_result).print_on(console)
        else:
            reporters.print_markdown(instance.final_result)
        return ExitCode.DONE


def _models_line(config: InstanceConfig) -> str:
    big, small = config.big_model, config.small_model
    models = f"{big} plans and works" if big == small else f"{big} plans, {small} works"
    return f"{models} ({_BETTER_MODELS})" if EMBEDDED_MODEL in (big, small) else models


class _NotingHandler(logging.Handler):
    """Passes log records of the embedded service to the reporter, which keeps the live view intact."""

    def __init__(self, reporter: reporters.Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        from orchestrator.telemetry.logs import describe  # noqa: PLC0415  as in `_connect_or_start`

        trace = f"\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else ""
        self._reporter.note(f"{record.levelname.lower()}: {describe(record)}{trace}")


def with_quiet_log(settings: Settings) -> Settings:
    """Return the settings with a log of errors only, for a service that the command starts."""
    return replace(settings, log_level="error")
