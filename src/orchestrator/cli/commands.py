"""The root command, and the commands that run or check a service: run, up, serve, doctor."""

import asyncio
from typing import Annotated

import typer

from orchestrator.cli import connection_options, control, instances, review, token
from orchestrator.cli import options as opt
from orchestrator.cli.connection_options import load_settings
from orchestrator.cli.exit_codes import ExitCode, UsageError, reporting_errors
from orchestrator.cli.options import examples
from orchestrator.cli.plan_option import PlanCommand
from orchestrator.errors import OrchestratorError
from orchestrator.installation import DISTRIBUTION, requires

app = typer.Typer(
    name="orchestrator",
    help="One hard prompt, planned by a big model, worked on by small ones, synthesised by the big one.",
    epilog=examples(
        'orchestrator run "Compare three ways to shard a counter"',
        "orchestrator up",
        "orchestrator doctor",
    )
    + "\n\n\b\nExit codes: 0 done, 1 the instance failed, 2 bad usage or refused, 3 no service,"
    "\n4 `wait` found that a review is due, 124 `wait` ran out of time.",
    rich_markup_mode=None,  # plain help needs no import of Rich: it is there at once
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Say which.")] = False
) -> None:
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415

        typer.echo(f"orchestrator {installed(DISTRIBUTION)}")
        raise typer.Exit(ExitCode.DONE)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)


@app.command(
    epilog=examples(
        'orchestrator run "Write a URL shortener in Go, with tests"',
        "orchestrator run --prompt-file task.md > answer.md",
        'git diff | orchestrator run "Review this" --max-duration 10m',
        'orchestrator run --plan "Write a URL shortener in Go"',
        'orchestrator run "Add pagination" --dir . --out . --diff',
        "orchestrator run --json < task.md",
    ),
    cls=PlanCommand,
)
@reporting_errors
@opt.with_config_options
def run(
    prompt: opt.Prompt = None,
    *,
    prompt_file: opt.PromptFile = None,
    file: opt.Files = None,
    directory: opt.Dir = None,
    continues: opt.Continues = "",
    out: opt.Out = None,
    diff: opt.Diff = False,
    force: opt.Force = False,
    instance_id: opt.NewId = "",
    request_id: opt.RequestId = "",
    label: opt.Labels = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Show the plan before work begins, and ask in a terminal what is to become of it. "
            "With FILE behind it: take the plan from there, a JSON list of subtasks; no model plans.",
        ),
    ] = False,
    plan_file: opt.PlanFile = None,
    config: opt.Config,
    live: opt.Live = False,
    address: opt.Address = None,
    grpc_address: opt.GrpcAddress = None,
    rest_address: opt.RestAddress = None,
    database: opt.Database = None,
    log_level: opt.LogLevel = None,
    as_json: opt.Json = False,
) -> None:
    """Create an instance, show its progress and print its answer.

    Uses the service that answers at the address, or starts one of its own and stops it at the end. Progress
    goes to stderr, the answer to stdout.
    """
    opt.check_one_address(address, grpc_address)
    if (diff or force) and not out:
        raise UsageError("--diff and --force are about writing files: say where with --out DIR")
    settings = load_settings(
        address=address,
        grpc_address=grpc_address,
        rest_address=rest_address,
        database=database,
        big_model=config.big_model,
        small_model=config.small_model,
        log_level=log_level,
    )
    message = config.to_message()
    message.subtasks.extend(opt.read_plan(plan_file).subtasks if plan_file else ())
    if plan:
        message.review_plan = True
    request = opt.build_request(
        opt.read_prompt(prompt, prompt_file),
        message,
        instance_id=instance_id,
        request_id=request_id,
        labels=label,
        files=opt.read_files(directory, file),
    )
    from orchestrator.cli.run import Runner, Target, with_quiet_log  # noqa: PLC0415

    runner = Runner(
        request,
        settings if log_level else with_quiet_log(settings),
        live=live,
        as_json=as_json,
        stops_at_plan=plan,
        continues=continues,
        target=Target(out, shows_diff=diff, force=force) if out else None,
    )
    try:
        code = asyncio.run(runner.run())
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        if runner.exit_message:
            typer.echo(runner.exit_message, err=True)
        is_terminated = isinstance(error, asyncio.CancelledError)
        raise typer.Exit(ExitCode.STOPPED if is_terminated else ExitCode.INTERRUPTED) from None
    except OrchestratorError:
        if runner.exit_message:
            typer.echo(runner.exit_message, err=True)
        raise
    raise typer.Exit(code)


@app.command(
    epilog=examples(
        "orchestrator up", "orchestrator up --address 127.0.0.1:9001 --rest-address 127.0.0.1:9000"
    )
)
@reporting_errors
def up(
    *,
    address: opt.Address = None,
    grpc_address: opt.GrpcAddress = None,
    rest_address: opt.RestAddress = None,
    database: opt.Database = None,
    big_model: opt.BigModel = None,
    small_model: opt.SmallModel = None,
    log_level: opt.LogLevel = None,
) -> None:
    """Run the service with REST in front, until Ctrl-C."""
    opt.check_one_address(address, grpc_address)
    settings = load_settings(
        address=address,
        grpc_address=grpc_address,
        rest_address=rest_address,
        database=database,
        big_model=big_model,
        small_model=small_model,
        log_level=log_level,
    )
    with requires("server", "`orchestrator up`"):
        from orchestrator import app as service  # noqa: PLC0415

    asyncio.run(service.up(settings))


@app.command(epilog=examples("orchestrator serve", "orchestrator serve --database /var/lib/orchestrator.db"))
@reporting_errors
def serve(
    *,
    address: opt.Address = None,
    grpc_address: opt.GrpcAddress = None,
    database: opt.Database = None,
    big_model: opt.BigModel = None,
    small_model: opt.SmallModel = None,
    log_level: opt.LogLevel = None,
) -> None:
    """Run the gRPC service alone, until Ctrl-C."""
    opt.check_one_address(address, grpc_address)
    settings = load_settings(
        address=address,
        grpc_address=grpc_address,
        database=database,
        big_model=big_model,
        small_model=small_model,
        log_level=log_level,
    )
    with requires("server", "`orchestrator serve`"):
        from orchestrator import app as service  # noqa: PLC0415

    asyncio.run(service.serve(settings))


@app.command(epilog=examples("orchestrator doctor", "orchestrator doctor --json"))
@reporting_errors
def doctor(*, address: opt.Address = None, as_json: opt.Json = False) -> None:
    """Say what is missing and how to mend it; each model that is set is called once, for a few tokens.

    Where a service answers at the address it is told what that is set to, and its models are called. Exit
    code 1 when the service cannot do its work like this.
    """
    with requires("server", "`orchestrator doctor`"):
        from orchestrator.cli import doctor as checks  # noqa: PLC0415

    findings = asyncio.run(checks.run_checks(load_settings(address=address)))
    checks.print_findings(findings, as_json=as_json)
    if any(finding.is_broken for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


app.add_typer(instances.app)
app.add_typer(control.app)
app.add_typer(review.app)
connection_options.add_to_all(app)
app.add_typer(token.app, name="token", help="Make, list and revoke the tokens of a service.")
