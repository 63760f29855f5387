"""The commands that steer an instance, one call each."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import options as opt
from orchestrator.cli.exits import UsageError, ends_well
from orchestrator.cli.instances import call_service
from orchestrator.cli.options import examples

if TYPE_CHECKING:  # imported when a command runs: see the package's docstring
    from collections.abc import Awaitable, Callable

    from orchestrator.client import Client

app = typer.Typer()


def _steer(address: str | None, call: "Callable[[Client], Awaitable[Any]]", *, as_json: bool) -> None:
    answer = call_service(address, call)
    if as_json:
        from orchestrator.cli.reporters import print_json  # noqa: PLC0415

        print_json(answer)
        return
    from orchestrator.core.wire import STATUS  # noqa: PLC0415

    typer.echo(f"{answer.instance.id} is {STATUS[answer.instance.state]}")


@app.command(epilog=examples("orchestrator pause 01J9Z"))
@ends_well
def pause(instance_id: opt.InstanceId, *, address: opt.Address = None, as_json: opt.Json = False) -> None:
    """Start nothing new; what runs finishes."""
    _steer(address, lambda client: client.pause(instance_id), as_json=as_json)


@app.command(epilog=examples("orchestrator resume 01J9Z"))
@ends_well
def resume(instance_id: opt.InstanceId, *, address: opt.Address = None, as_json: opt.Json = False) -> None:
    """Let a paused instance go on."""
    _steer(address, lambda client: client.resume(instance_id), as_json=as_json)


@app.command(epilog=examples("orchestrator terminate 01J9Z"))
@ends_well
def terminate(instance_id: opt.InstanceId, *, address: opt.Address = None, as_json: opt.Json = False) -> None:
    """Stop an instance for good."""
    _steer(address, lambda client: client.terminate(instance_id), as_json=as_json)


@app.command(
    epilog=examples("orchestrator retry 01J9Z", "orchestrator retry 01J9Z --small-model openai/gpt-5-mini")
)
@ends_well
@opt.takes_config
def retry(
    instance_id: opt.InstanceId,
    *,
    config: opt.Config,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Run again what failed; what is done stays done."""
    _steer(address, lambda client: client.retry(instance_id, config.message()), as_json=as_json)


@app.command(
    epilog=examples("orchestrator restart 01J9Z", "orchestrator restart 01J9Z --big-model openai/gpt-5")
)
@ends_well
@opt.takes_config
def restart(
    instance_id: opt.InstanceId,
    *,
    config: opt.Config,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Begin anew under the same id; the events so far are kept."""
    _steer(address, lambda client: client.restart(instance_id, config.message()), as_json=as_json)


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
@ends_well
@opt.takes_config
def fork(
    instance_id: opt.InstanceId,
    *,
    stage: Annotated[
        Stage,
        typer.Option(help="What is done anew: all of it, the subtasks, or the synthesis alone."),
    ],
    new_id: opt.NewId = "",
    config: opt.Config,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Make a new instance from what this one has done; this one stays as it is."""
    from orchestrator.v1 import orchestrator_pb2 as pb  # noqa: PLC0415

    at = pb.Stage.Value(f"STAGE_{stage.name}")
    _steer(
        address,
        lambda client: client.fork(instance_id, at, new_id=new_id, config=config.message()),
        as_json=as_json,
    )


@app.command(epilog=examples("orchestrator delete 01J9Z"))
@ends_well
def delete(instance_id: opt.InstanceId, *, address: opt.Address = None, as_json: opt.Json = False) -> None:
    """Remove a finished instance and its events for good."""
    call_service(address, lambda client: client.delete(instance_id))
    typer.echo(json.dumps({"id": instance_id}) if as_json else f"{instance_id} is deleted")


@app.command(
    epilog=examples(
        "orchestrator review 01J9Z --approve",
        'orchestrator review 01J9Z --reject "smaller parts, please"',
        "orchestrator review 01J9Z --approve --plan edited.json",
    )
)
@ends_well
def review(
    instance_id: opt.InstanceId,
    *,
    approve: Annotated[bool, typer.Option("--approve", help="Go on with the plan.")] = False,
    reject: Annotated[
        str | None, typer.Option(metavar="FEEDBACK", help="Plan again; say what should be better.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --approve: a JSON list of subtasks instead.")
    ] = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Decide on a plan that waits for review."""
    if approve == (reject is not None):
        raise UsageError("say either --approve or --reject FEEDBACK")
    from orchestrator.v1.event_pb2 import DECISION_APPROVE, DECISION_REJECT  # noqa: PLC0415

    subtasks = opt.read_plan(plan) if plan else ()
    decision = DECISION_APPROVE if approve else DECISION_REJECT
    _steer(
        address,
        lambda client: client.review(instance_id, decision, subtasks=subtasks, feedback=reject or ""),
        as_json=as_json,
    )
