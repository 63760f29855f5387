"""The commands that create instances and show them."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options as opt
from orchestrator.cli.connection import (
    call_service,
    full_id_of,
    no_service_error,
    resolve_address,
    with_full_id,
)
from orchestrator.cli.connection_options import load_settings
from orchestrator.cli.exit_codes import ExitCode, UsageError, print_error, reporting_errors
from orchestrator.cli.options import examples
from orchestrator.cli.text import command

if TYPE_CHECKING:  # imported when a command runs: see the package's docstring
    from orchestrator.client import Client
    from orchestrator.v1.instance_pb2 import Instance
    from orchestrator.v1.orchestrator_pb2 import ListInstancesResponse

app = typer.Typer()


@app.command(
    epilog=examples(
        'orchestrator create "Write a URL shortener in Go" --label team=infra',
        'git diff | orchestrator create "Review this"',
        'id=$(orchestrator create "…") && orchestrator wait $id && orchestrator result $id',
    )
)
@reporting_errors
@opt.with_config_options
def create(
    prompt: opt.Prompt = None,
    *,
    prompt_file: opt.PromptFile = None,
    file: opt.Files = None,
    directory: opt.Dir = None,
    continues: opt.Continues = "",
    instance_id: opt.NewId = "",
    request_id: opt.RequestId = "",
    label: opt.Labels = None,
    config: opt.Config,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A JSON list of subtasks: no model plans; - reads stdin.", show_default=False
        ),
    ] = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Create an instance, print its id and leave it to the service."""
    message = config.to_message()
    message.subtasks.extend(opt.read_plan(plan).subtasks if plan else ())
    text = opt.read_prompt(prompt, prompt_file)
    labels = opt.read_labels(label)
    files = opt.read_files(directory, file)

    async def call(client: "Client") -> None:
        created = await client.create(
            text,
            instance_id=instance_id,
            request_id=request_id,
            config=message,
            labels=labels,
            files=files,
            continues=await full_id_of(client, continues),
        )
        if as_json:
            from orchestrator.cli.reporters import print_json  # noqa: PLC0415

            print_json(created)
        else:
            typer.echo(created.id)
            if sys.stdout.isatty():
                from orchestrator.cli.follow import created_message  # noqa: PLC0415

                typer.echo(created_message(created.id, load_settings(address=address)), err=True)

    call_service(address, call)


@app.command(epilog=examples("orchestrator batch requests.jsonl", "orchestrator batch - < requests.jsonl"))
@reporting_errors
def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A JSON object a line, as POST / takes it; - reads stdin. At most 100."
        ),
    ],
    *,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Create many instances at once, all or none, and print their ids."""
    requests = opt.read_requests(file)

    async def call(client: "Client") -> None:
        created = await client.create_all(requests)
        if as_json:
            from orchestrator.cli.reporters import print_json  # noqa: PLC0415

            print_json(created)
        else:
            typer.echo("\n".join(instance.id for instance in created.instances))

    call_service(address, call)


@app.command(epilog=examples("orchestrator get 01J9Z", "orchestrator get 01J9Z --full --json"))
@reporting_errors
def get(
    instance_id: opt.InstanceId,
    *,
    full: Annotated[
        bool, typer.Option("--full", help="With the subtasks' instructions and outputs.")
    ] = False,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Show one instance."""

    async def call(client: "Client") -> None:
        response = await with_full_id(client, instance_id, lambda full_id: client.get(full_id, full=full))
        from orchestrator.cli import reporters, tables  # noqa: PLC0415

        if as_json:
            reporters.print_json(response)
        else:
            response.instance.final_result = response.status.output.final_result  # whole in every view
            tables.print_instance(response.instance, full=full, address_option=_address_option(address))

    call_service(address, call)


@app.command(epilog=examples("orchestrator result 01J9Z > answer.md", "orchestrator result 01J9Z --json"))
@reporting_errors
def result(
    instance_id: opt.InstanceId,
    *,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Print an instance's result, the Markdown alone.

    Exit code 1 where the instance has ended without one.
    """

    async def call(client: "Client") -> "tuple[Instance, str]":
        response = await with_full_id(client, instance_id, client.get)
        from orchestrator.core.instance import COMPLETE  # noqa: PLC0415

        has_result = response.instance.state == COMPLETE
        return response.instance, await client.result(response.instance.id) if has_result else ""

    instance, text = call_service(address, call)
    from orchestrator.core.instance import COMPLETE, PAUSED, TERMINAL, WAITING  # noqa: PLC0415

    if instance.state not in TERMINAL:
        from orchestrator.core.wire import STATUS  # noqa: PLC0415

        advice, verb = "wait for it with", "wait"
        if instance.state == WAITING:
            advice, verb = "look at its plan with", "review"
        elif instance.state == PAUSED:
            advice, verb = "let it go on with", "resume"
        next_command = command(f"{verb} {instance.id}{_address_option(address)}")
        why = f" ({instance.waiting_reason})" if instance.waiting_reason else ""
        raise UsageError(
            f"{instance.id} is {STATUS[instance.state]}{why} and has no result yet: {advice} `{next_command}`"
        )
    if instance.state != COMPLETE:
        print_error(_why_failed(instance))
        raise typer.Exit(ExitCode.FAILED)
    if as_json:
        typer.echo(json.dumps({"id": instance.id, "finalResult": text}))
        return
    from orchestrator.cli.reporters import print_markdown  # noqa: PLC0415

    print_markdown(text)


@app.command(
    epilog=examples(
        "orchestrator files 01J9Z",
        "orchestrator files 01J9Z --out . --diff",
        "orchestrator files 01J9Z --zip result.zip",
    )
)
@reporting_errors
def files(
    instance_id: opt.InstanceId,
    *,
    out: opt.Out = None,
    zip_file: Annotated[
        Path | None, typer.Option("--zip", metavar="FILE", help="Save all of them.", show_default=False)
    ] = None,
    diff: opt.Diff = False,
    force: opt.Force = False,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """List the files of a result, show them as a diff, or write them.

    A file is written over only where it is still as the instance was given it. Nothing is written outside of
    the folder.
    """

    async def call(client: "Client") -> None:
        listed = await with_full_id(client, instance_id, client.list_files)
        full_id = await full_id_of(client, instance_id)
        from orchestrator.cli import reporters, result_files, tables  # noqa: PLC0415

        if zip_file is not None:
            result_files.save_archive(await client.get_archive(full_id), zip_file, force=force)
        if out is not None:
            result_files.bring(
                await result_files.fetch(client, full_id),
                out,
                force=force,
                diff_output=sys.stdout if diff else None,
            )
        elif diff:
            found = await result_files.fetch(client, full_id)
            instance = (await client.get(full_id, full=True)).instance
            result_files.print_diff(result_files.changes_of_inputs(found, instance), sys.stdout)
        elif as_json:
            reporters.print_json(listed)
        elif zip_file is None:
            tables.print_files(listed.files)

    call_service(address, call)


@app.command(
    "list",
    epilog=examples(
        "orchestrator list",
        "orchestrator list --state errored --label team=infra",
        "orchestrator list --watch",
    ),
)
@reporting_errors
def list_(
    *,
    state: Annotated[
        list[opt.StateName] | None, typer.Option(help="Only in this state; repeatable.", show_default=False)
    ] = None,
    label: opt.Labels = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The most to show.")] = 50,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on: in a pipe, a line for whatever has changed.")
    ] = False,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """List instances, newest first, with what their own calls have used.

    What a fork copied was used by its source, and what was used before a restart counts: sums add up to what
    was paid for.
    """
    labels = opt.read_labels(label)

    async def fetch(client: "Client") -> "ListInstancesResponse":
        from orchestrator.v1 import instance_pb2, orchestrator_pb2  # noqa: PLC0415

        states = [
            instance_pb2.State.Value(f"STATE_{name.value.upper().replace('-', '_')}") for name in state or ()
        ]
        response = orchestrator_pb2.ListInstancesResponse()
        while len(response.instances) < limit:
            page = await client.list(
                page_size=min(limit - len(response.instances), 1000),
                page_token=response.next_page_token,
                states=states,
                labels=labels,
            )
            response.instances.extend(page.instances)
            response.next_page_token = page.next_page_token
            if not page.next_page_token:
                break
        for instance in response.instances:
            if instance.HasField("own_usage"):
                instance.usage.CopyFrom(instance.own_usage)
        return response

    async def call(client: "Client") -> None:
        from orchestrator.cli import reporters, tables  # noqa: PLC0415
        from orchestrator.cli.list_watch import watch as watch_list  # noqa: PLC0415

        if watch:
            await watch_list(lambda: fetch(client), lambda one: _is_deleted(client, one), as_json=as_json)
        elif as_json:
            reporters.print_json(await fetch(client))
        else:
            tables.print_instances((await fetch(client)).instances)

    call_service(address, call)


@app.command(
    epilog=examples(
        "orchestrator events 01J9Z --follow", "orchestrator events 01J9Z --after 12 --no-follow --json"
    )
)
@reporting_errors
def events(
    instance_id: opt.InstanceId,
    *,
    after: Annotated[int, typer.Option(min=0, metavar="N", help="Only events after this sequence.")] = 0,
    follow: Annotated[bool, typer.Option(help="Go on until the instance has ended.")] = True,
    live: opt.Live = False,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Follow an instance: drawn in a terminal, in a pipe its events, one a line.

    With --no-follow or --after a terminal shows lines too.
    """

    async def call(client: "Client") -> None:
        # A stream goes on trying; whether a service answers and has the instance must be known at once.
        full_id = (await with_full_id(client, instance_id, client.get)).instance.id
        from orchestrator.cli import follow as follow_module  # noqa: PLC0415
        from orchestrator.cli import reporters, tables  # noqa: PLC0415
        from orchestrator.cli.progress import Progress  # noqa: PLC0415

        # Without its beginning an instance cannot be drawn.
        is_live = follow and not after and not as_json and sys.stdout.isatty()
        live_view = reporters.live_reporter(_address_option(address)) if is_live else None
        lines = reporters.JsonReporter() if as_json else reporters.EventLines()
        progress = Progress()
        try:
            await follow_module.follow(
                client, full_id, progress, live_view or lines, after=after, until_end=follow, live=live
            )
        except asyncio.CancelledError:  # Ctrl-C
            if follow:
                settings = load_settings(address=address)
                typer.echo(follow_module.detached_message(full_id, settings, live=live), err=True)
            raise
        if live_view:
            tables.print_outcome(progress.instance)

    call_service(address, call)


@app.command(
    epilog=examples("orchestrator wait 01J9Z", "orchestrator wait 01J9Z --timeout 10m")
    + f"\n\n\b\nExit codes: 0 complete, 1 errored or terminated, {ExitCode.REVIEW_DUE} its plan waits for "
    f"review, {ExitCode.TIMED_OUT} the time is up."
)
@reporting_errors
def wait(
    instance_id: opt.InstanceId,
    *,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            help="How long to wait, as in 60, 90s or 10m. [default: without limit]",
            parser=opt.read_duration,
        ),
    ] = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Wait until an instance has ended, or a person has to look at its plan."""

    async def call(client: "Client") -> "Instance":
        if not await client.is_serving():
            raise await no_service_error(resolve_address(address))
        full_id = (await with_full_id(client, instance_id, client.get)).instance.id
        answer = await client.wait(full_id, timeout_s=timeout, until_review=True)
        if as_json:
            from orchestrator.cli.reporters import print_json  # noqa: PLC0415

            print_json(answer)
        else:
            typer.echo(answer.status.status)
        return answer.instance

    instance = call_service(address, call)
    from orchestrator.core.instance import COMPLETE, TERMINAL, WAITING  # noqa: PLC0415

    if instance.state == WAITING:
        from orchestrator.cli.follow import review_due_message  # noqa: PLC0415

        typer.echo(review_due_message(instance.id, load_settings(address=address)), err=True)
        raise typer.Exit(ExitCode.REVIEW_DUE)
    if instance.state not in TERMINAL:
        if instance.waiting_reason:
            print_error(f"{instance.id} waits: {instance.waiting_reason}")
        raise typer.Exit(ExitCode.TIMED_OUT)
    if instance.state != COMPLETE:
        print_error(_why_failed(instance))
        raise typer.Exit(ExitCode.FAILED)


async def _is_deleted(client: "Client", instance_id: str) -> bool:
    from orchestrator.client import ServiceError  # noqa: PLC0415

    try:
        await client.get(instance_id)
    except ServiceError as error:
        if error.reason != "INSTANCE_NOT_FOUND":
            raise
        return True
    return False


def _why_failed(instance: "Instance") -> str:
    if instance.HasField("error"):
        return f"{instance.error.reason}: {instance.error.message}"
    return f"{instance.id} was terminated"


def _address_option(address: str | None) -> str:
    """Return the flag that leads another command to the service of this one."""
    from orchestrator.cli.follow import address_option  # noqa: PLC0415

    return address_option(load_settings(address=address))
