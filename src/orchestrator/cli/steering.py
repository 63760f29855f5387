"""The commands that steer an instance, one call each: pause, resume, terminate, retry, restart, review."""

import json
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
    from orchestrator.v1.instance_pb2 import Subtask

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
def retry(
    instance_id: opt.InstanceId,
    *,
    big_model: opt.BigModel = None,
    small_model: opt.SmallModel = None,
    max_attempts: opt.MaxAttempts = None,
    tolerated_failures: opt.ToleratedFailures = None,
    max_tokens: opt.MaxTokens = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Run again what failed; what is done stays done."""
    config = opt.config_of(
        big_model=big_model,
        small_model=small_model,
        max_attempts=max_attempts,
        tolerated_failures=tolerated_failures,
        max_tokens=max_tokens,
    )
    _steer(address, lambda client: client.retry(instance_id, config), as_json=as_json)


@app.command(
    epilog=examples("orchestrator restart 01J9Z", "orchestrator restart 01J9Z --big-model openai/gpt-5")
)
@ends_well
def restart(
    instance_id: opt.InstanceId,
    *,
    big_model: opt.BigModel = None,
    small_model: opt.SmallModel = None,
    address: opt.Address = None,
    as_json: opt.Json = False,
) -> None:
    """Begin anew under the same id; the events so far are kept."""
    config = opt.config_of(big_model=big_model, small_model=small_model)
    _steer(address, lambda client: client.restart(instance_id, config), as_json=as_json)


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

    subtasks = _read_plan(plan) if plan else ()
    decision = DECISION_APPROVE if approve else DECISION_REJECT
    _steer(
        address,
        lambda client: client.review(instance_id, decision, subtasks=subtasks, feedback=reject or ""),
        as_json=as_json,
    )


def _read_plan(file: Path) -> "list[Subtask]":
    from google.protobuf.json_format import ParseDict, ParseError  # noqa: PLC0415

    from orchestrator.v1.instance_pb2 import Subtask  # noqa: PLC0415

    try:
        return [ParseDict(entry, Subtask()) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, TypeError, ParseError) as error:
        raise UsageError(f"{file} is no JSON list of subtasks: {error}") from None
