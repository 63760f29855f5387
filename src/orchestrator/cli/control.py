"""The commands that control instances: pause, resume, terminate, retry, restart, fork, delete."""

import json
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import options as opt
from orchestrator.cli.completion import instance_ids
from orchestrator.cli.connection import call_service, with_full_id
from orchestrator.cli.exit_codes import ExitCode, UsageError, exit_code_of, print_error, reporting_errors
from orchestrator.cli.options import examples

if TYPE_CHECKING:  # imported when a command runs: see the package's docstring
    from collections.abc import Awaitable, Callable

    from orchestrator.client import Client

    Call = Callable[[Client, str], Awaitable[Any]]
    ExpectingCall = Callable[[Client, str, int | None], Awaitable[Any]]

app = typer.Typer()


def _control_each(
    address: str | None,
    instance_ids: Sequence[str],
    call: "ExpectingCall",
    *,
    as_json: bool,
    expected_sequence: int | None = None,
) -> None:
    """Call for each instance and print its new state; raise UsageError for several and one sequence."""
    if expected_sequence is not None and len(instance_ids) > 1:
        raise UsageError("--expected-sequence goes with one instance: each has events of its own")

    async def control(client: "Client", instance_id: str) -> None:
        from orchestrator.cli.expectation import call_expecting  # noqa: PLC0415

        answer = await call_expecting(client, instance_id, expected_sequence, partial(call, client))
        print_state(answer, as_json=as_json)

    _for_each(address, instance_ids, control)


def _for_each(address: str | None, instance_ids: Sequence[str], control: "Call") -> None:
    """Apply `control` to each instance despite failures of others; exit with the worst code."""

    async def control_all(client: "Client") -> ExitCode:
        import grpc  # noqa: PLC0415

        from orchestrator.client import ServiceError  # noqa: PLC0415

        connection_codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
        worst_code = ExitCode.DONE
        for instance_id in dict.fromkeys(instance_ids):
            try:
                await with_full_id(client, instance_id, partial(control, client))
            except (ServiceError, UsageError) as error:
                if len(instance_ids) == 1 or (
                    isinstance(error, ServiceError) and error.code in connection_codes
                ):
                    raise
                print_error(str(error))
                worst_code = max(worst_code, exit_code_of(error))
        return worst_code

    if code := call_service(address, control_all):
        raise typer.Exit(code)


def print_state(answer: Any, *, as_json: bool) -> None:
    """Print the state of the instance in an answer, or the whole answer as JSON."""
    if as_json:
        from orchestrator.cli.reporters import print_json  # noqa: PLC0415

        print_json(answer)
        return
    from orchestrator.core.wire import STATUS  # noqa: PLC0415

    typer.echo(f"{answer.instance.id} is {STATUS[answer.instance.state]}")


@app.command(epilog=examples("orchestrator pause 01J9Z"))
@reporting_errors
def pause(
    instance_ids: opt.InstanceIds,
    *,
    expected_sequence: opt.ExpectedSequence = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Start nothing new; what runs finishes."""
    _control_each(
        address,
        instance_ids,
        lambda client, one, expected: client.pause(one, expected_sequence=expected),
        as_json=as_json,
        expected_sequence=expected_sequence,
    )


@app.command(epilog=examples("orchestrator resume 01J9Z"))
@reporting_errors
def resume(
    instance_ids: opt.InstanceIds,
    *,
    expected_sequence: opt.ExpectedSequence = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Let paused instances go on."""
    _control_each(
        address,
        instance_ids,
        lambda client, one, expected: client.resume(one, expected_sequence=expected),
        as_json=as_json,
        expected_sequence=expected_sequence,
    )


@app.command(
    epilog=examples(
        "orchestrator terminate 01J9Z",
        "orchestrator list --state running | cut -f 1 | xargs orchestrator terminate",
    )
)
@reporting_errors
def terminate(
    instance_ids: opt.InstanceIds,
    *,
    expected_sequence: opt.ExpectedSequence = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Stop instances for good."""
    _control_each(
        address,
        instance_ids,
        lambda client, one, expected: client.terminate(one, expected_sequence=expected),
        as_json=as_json,
        expected_sequence=expected_sequence,
    )


class RetryableState(Enum):
    """The states in which an instance can be retried."""

    ERRORED = "errored"
    TERMINATED = "terminated"


@app.command(
    epilog=examples(
        "orchestrator retry 01J9Z",
        "orchestrator retry 01J9Z --small-model openai/gpt-5-mini",
        "orchestrator retry 01J9Z --clear budget",
        "orchestrator retry --state errored --reason MODEL_UNAUTHENTICATED --dry-run",
    )
)
@reporting_errors
@opt.with_config_options
def retry(
    instance_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID…",
            help="The instances' ids, or how only theirs begin; or give --state, --reason or --label.",
            autocompletion=instance_ids,
            show_default=False,
        ),
    ] = None,
    *,
    state: Annotated[
        list[RetryableState] | None,
        typer.Option(
            help="All in this state; repeatable. [default: errored, with --reason or --label]",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REASON",
            help="Only those that failed for this reason, as in MODEL_UNAUTHENTICATED; repeatable.",
            show_default=False,
        ),
    ] = None,
    label: opt.Labels = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be retried.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before retrying many.")] = False,
    config: opt.Config,
    clear: opt.Clear = None,
    expected_sequence: opt.ExpectedSequence = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Run again what failed; what is done stays done."""
    values, mask = opt.config_changes(config, clear)
    is_filtered = bool(state or reason or label)
    if is_filtered == bool(instance_ids):
        raise UsageError("give either ids, or which instances by --state, --reason and --label")
    if is_filtered:
        if expected_sequence is not None:
            raise UsageError("--expected-sequence goes with one instance: give its id")
        from orchestrator.cli.bulk_retry import Bulk, retry_all  # noqa: PLC0415

        bulk = Bulk(
            states=[each.value for each in state or (RetryableState.ERRORED,)],
            reasons=reason or (),
            labels=opt.read_labels(label),
            is_dry_run=dry_run,
            asks=not yes,
            as_json=as_json,
        )
        call_service(address, lambda client: retry_all(client, bulk, values, mask))
        return
    if dry_run:
        raise UsageError("--dry-run goes with --state, --reason or --label")
    _control_each(
        address,
        instance_ids or (),
        lambda client, one, expected: client.retry(one, values, update_mask=mask, expected_sequence=expected),
        as_json=as_json,
        expected_sequence=expected_sequence,
    )


@app.command(
    epilog=examples(
        "orchestrator restart 01J9Z",
        "orchestrator restart 01J9Z --big-model openai/gpt-5",
        "orchestrator restart 01J9Z --clear subtasks",
    )
)
@reporting_errors
@opt.with_config_options
def restart(
    instance_ids: opt.InstanceIds,
    *,
    config: opt.Config,
    clear: opt.Clear = None,
    expected_sequence: opt.ExpectedSequence = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Begin anew under the same id; the events so far are kept."""
    values, mask = opt.config_changes(config, clear)
    _control_each(
        address,
        instance_ids,
        lambda client, one, expected: client.restart(
            one, values, update_mask=mask, expected_sequence=expected
        ),
        as_json=as_json,
        expected_sequence=expected_sequence,
    )


class Stage(Enum):
    """What a fork does anew."""

    PLAN = "plan"
    SUBTASKS = "subtasks"
    SYNTHESIS = "synthesis"


@app.command(
    epilog=examples(
        "orchestrator fork 01J9Z --stage synthesis --big-model anthropic/claude-opus-4-5",
        "orchestrator fork 01J9Z --stage subtasks --id second-try",
    )
)
@reporting_errors
@opt.with_config_options
def fork(
    instance_id: opt.InstanceId,
    *,
    stage: Annotated[
        Stage,
        typer.Option(help="What is done anew: all of it, the subtasks, or the synthesis alone."),
    ],
    new_id: opt.NewId = "",
    config: opt.Config,
    clear: opt.Clear = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Make a new instance from what this one has done; this one stays as it is."""
    from orchestrator.v1 import orchestrator_pb2 as pb  # noqa: PLC0415

    at = pb.Stage.Value(f"STAGE_{stage.name}")
    values, mask = opt.config_changes(config, clear)
    _control_each(
        address,
        [instance_id],
        lambda client, one, _: client.fork(one, at, new_id=new_id, config=values, update_mask=mask),
        as_json=as_json,
    )


@app.command(
    epilog=examples(
        "orchestrator delete 01J9Z",
        "orchestrator list --state errored | cut -f 1 | xargs orchestrator delete",
    )
)
@reporting_errors
def delete(instance_ids: opt.InstanceIds, *, address: opt.Address = None, as_json: opt.Json = False) -> None:
    """Remove finished instances and their events for good."""

    async def control(client: "Client", instance_id: str) -> None:
        await client.delete(instance_id)
        typer.echo(json.dumps({"id": instance_id}) if as_json else f"{instance_id} is deleted")

    _for_each(address, instance_ids, control)
