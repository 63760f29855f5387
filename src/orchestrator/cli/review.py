"""The command `review`: show a plan, or decide on it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options as opt
from orchestrator.cli.connection import call_service, with_full_id
from orchestrator.cli.connection_options import load_settings
from orchestrator.cli.control import print_state
from orchestrator.cli.exit_codes import UsageError, reporting_errors
from orchestrator.cli.options import examples

if TYPE_CHECKING:  # imported when a command runs: see the package's docstring
    from orchestrator.client import Client
    from orchestrator.v1.instance_pb2 import Instance
    from orchestrator.v1.orchestrator_pb2 import ReviewPlanResponse

app = typer.Typer()


@app.command(
    epilog=examples(
        "orchestrator review 01J9Z",
        "orchestrator review 01J9Z --approve",
        'orchestrator review 01J9Z --reject "smaller parts, please"',
        "orchestrator review 01J9Z --json > plan.json   # and once it is edited:",
        "orchestrator review 01J9Z --approve --plan plan.json",
    )
)
@reporting_errors
def review(
    instance_id: opt.InstanceId,
    *,
    approve: Annotated[bool, typer.Option("--approve", help="Go on with the plan.")] = False,
    reject: Annotated[
        str | None, typer.Option(metavar="FEEDBACK", help="Plan again; say what should be better.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --approve: go on with the subtasks of this file instead; - reads stdin.",
        ),
    ] = None,
    expected_sequence: opt.ExpectedSequence = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Show a plan, or decide on one that waits for review."""
    if approve and reject is not None:
        raise UsageError("say either --approve or --reject FEEDBACK")
    if plan and not approve:
        raise UsageError("--plan FILE goes with --approve")
    if not approve and reject is None:
        if expected_sequence is not None:
            raise UsageError("--expected-sequence goes with --approve or --reject")
        _show(instance_id, address, as_json=as_json)
        return
    from orchestrator.v1.event_pb2 import DECISION_APPROVE, DECISION_REJECT  # noqa: PLC0415

    edited = opt.read_plan(plan) if plan else opt.PlanInput(())
    decision = DECISION_APPROVE if approve else DECISION_REJECT

    async def call(client: "Client") -> None:
        from orchestrator.cli.expectation import call_expecting  # noqa: PLC0415

        async def decide(full_id: str) -> "ReviewPlanResponse":
            # A plan that was shown at an event, and edited, is of that event.
            shown = edited.sequence if edited.instance_id == full_id else None
            return await call_expecting(
                client,
                full_id,
                expected_sequence or shown,
                lambda one, expected: client.review(
                    one,
                    decision,
                    subtasks=edited.subtasks,
                    feedback=reject or "",
                    expected_sequence=expected,
                ),
            )

        answer = await with_full_id(client, instance_id, decide)
        print_state(answer, as_json=as_json)

    call_service(address, call)


def _show(instance_id: str, address: str | None, *, as_json: bool) -> None:
    async def call(client: "Client") -> "Instance":
        answer = await with_full_id(client, instance_id, lambda whole: client.get(whole, full=True))
        return answer.instance

    instance = call_service(address, call)
    from orchestrator.cli.follow import review_due_message  # noqa: PLC0415
    from orchestrator.core.instance import WAITING  # noqa: PLC0415
    from orchestrator.core.wire import STATUS  # noqa: PLC0415

    status = STATUS[instance.state]
    if not instance.subtasks:
        raise UsageError(f"{instance.id} is {status} and has no plan yet")
    if as_json:
        typer.echo(plan_json(instance))
        return
    from orchestrator.cli.tables import print_plan  # noqa: PLC0415

    print_plan(instance)
    note = f"{instance.id} is {status}: no review is due"
    if instance.state == WAITING:
        note = review_due_message(
            instance.id, load_settings(address=address), sequence=instance.last_sequence
        )
    typer.echo(f"\n{note}", err=True)


def plan_json(instance: "Instance") -> str:
    """Format the plan of an instance in VIEW_FULL as `--plan` accepts it."""
    subtasks = [
        {
            "id": subtask.id,
            "title": subtask.title,
            "instructions": subtask.instructions,
            "dependsOn": list(subtask.depends_on),
            "worker": subtask.worker,
            **({"files": list(subtask.files)} if subtask.files else {}),
        }
        for subtask in instance.subtasks
        if not subtask.merges
    ]
    plan = {
        "id": instance.id,
        "lastSequence": instance.last_sequence,
        "summary": instance.summary,
        "subtasks": subtasks,
    }
    return json.dumps(plan, indent=2)
