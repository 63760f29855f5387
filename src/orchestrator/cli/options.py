"""The options that several commands share, and how they are parsed."""

import functools
import inspect
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer

from orchestrator.cli import stdin_input
from orchestrator.cli.completion import instance_ids
from orchestrator.cli.exit_codes import UsageError
from orchestrator.encoding import decode
from orchestrator.installation import example

if TYPE_CHECKING:  # protobuf is imported when a request is made, not for --help
    from google.protobuf.message import Message

    from orchestrator.v1.instance_pb2 import File, InstanceConfig, Subtask
    from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest

R = TypeVar("R")

_LINE_EXAMPLE: Final = 'each line must be a whole one, as in {"prompt": "Write a haiku"}'
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_UNITS_S: Final = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_PLAN_EXAMPLE: Final = 'as in [{"id": "t1", "title": "Part 1", "instructions": "Write part 1"}]'

Prompt: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        help="What is to be done; text that is piped in is its context. - or nothing: stdin is the prompt.",
    ),
]
PromptFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Read the prompt from a file; - reads stdin.", show_default=False),
]
InstanceId: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The instance's id, or how only its id begins.", autocompletion=instance_ids
    ),
]
InstanceIds: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        metavar="ID…", help="The instances' ids, or how only theirs begin.", autocompletion=instance_ids
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Answer with JSON, for programs.")]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where the service listens, for gRPC. [default: 127.0.0.1:50051]"),
]
GrpcAddress: TypeAlias = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="The same as --address.", hidden=True)
]
RestAddress: TypeAlias = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where REST listens. [default: 127.0.0.1:8787]")
]
Database: TypeAlias = Annotated[
    str | None, typer.Option(metavar="PATH", help="The event log. [default: in the user's data folder]")
]
LogLevel: TypeAlias = Annotated[
    str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error. [default: info]")
]
BigModel: TypeAlias = Annotated[
    str | None, typer.Option(metavar="PROVIDER/MODEL", help="Plans and synthesises.", show_default=False)
]
SmallModel: TypeAlias = Annotated[
    str | None, typer.Option(metavar="PROVIDER/MODEL", help="Works on subtasks.", show_default=False)
]
PlanFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A JSON list of subtasks: no model plans.", hidden=True),
]
Clear: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--clear",
        metavar="FIELD",
        help="Put a setting back to the service's default, or to none, as in budget, budget.max_tokens or "
        "subtasks (a plan of your own); repeatable.",
        show_default=False,
    ),
]
ExpectedSequence: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--expected-sequence",
        metavar="N",
        min=1,
        help="Act only if that is still its last event (`events` in `get`); else say what has happened.",
        show_default=False,
    ),
]
NewId: TypeAlias = Annotated[
    str, typer.Option("--id", metavar="ID", help="The new instance's id. [default: made by the service]")
]
RequestId: TypeAlias = Annotated[
    str, typer.Option(metavar="KEY", help="Repeating a create with the same key makes no second instance.")
]
Labels: TypeAlias = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A mark of your own; repeatable.")
]
Files: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--file", metavar="PATH", help="A text file to work on or with; repeatable.", show_default=False
    ),
]
Dir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="A folder to work on: its text files, as far as .gitignore allows.",
        show_default=False,
    ),
]
Continues: TypeAlias = Annotated[
    str,
    typer.Option(
        "--continue",
        metavar="ID",
        help="Go on from a finished instance: from its result, and its files unless others are given.",
        autocompletion=instance_ids,
        show_default=False,
    ),
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write the result's files into a folder.", show_default=False),
]
Diff: TypeAlias = Annotated[
    bool, typer.Option("--diff", help="Show what the result changes, before it is written.")
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Write over files that have changed meanwhile.")
]
Live: TypeAlias = Annotated[bool, typer.Option("--live", "-v", help="Also show text while models write it.")]


def read_duration(text: str) -> float:
    """Read a time span, as in 90s, 10m, 1h30m or 2d, in seconds; a bare number is seconds."""
    parts = _SPAN.findall(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is no time span: give one as in 90s, 10m or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def check_one_address(address: str | None, grpc_address: str | None) -> None:
    """Raise UsageError where both names of the one address are given and differ."""
    if address and grpc_address and address != grpc_address:
        raise UsageError(
            f"--address is {address} and --grpc-address {grpc_address}: they are one, give only it"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options that form the config of an instance; the service fills in the rest."""

    big_model: BigModel = None
    small_model: SmallModel = None
    instructions: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Told to every model beside the prompt.", show_default=False),
    ] = None
    max_subtasks: Annotated[
        int | None, typer.Option(metavar="N", help="The most subtasks a plan may have.", show_default=False)
    ] = None
    max_parallel_subtasks: Annotated[
        int | None, typer.Option(metavar="N", help="The most subtasks at work at once.", show_default=False)
    ] = None
    max_output_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="The most tokens one call may write.", show_default=False)
    ] = None
    max_continuations: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How often an answer cut off at that limit is continued.", show_default=False
        ),
    ] = None
    max_attempts: Annotated[
        int | None, typer.Option(metavar="N", help="The most attempts at one model call.", show_default=False)
    ] = None
    tolerated_failures: Annotated[
        int | None, typer.Option(metavar="N", help="How many subtasks may fail.", show_default=False)
    ] = None
    review_plan: Annotated[
        bool | None, typer.Option("--review-plan", help="Wait for a review before the subtasks start.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Stop when so many tokens are used.", show_default=False)
    ] = None
    max_cost_usd: Annotated[
        float | None, typer.Option(metavar="USD", help="Stop when so much is spent.", show_default=False)
    ] = None
    max_duration: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            help="Stop after so long, as in 90s, 10m or 1h30m.",
            parser=read_duration,
            show_default=False,
        ),
    ] = None

    def to_message(self) -> "InstanceConfig":
        """Build the message from the given options; raise UsageError for a number out of range."""
        from orchestrator.v1.instance_pb2 import Budget, InstanceConfig, RetryPolicy  # noqa: PLC0415

        try:
            config = InstanceConfig(
                big_model=self.big_model,
                small_model=self.small_model,
                instructions=self.instructions,
                max_subtasks=self.max_subtasks,
                max_parallel_subtasks=self.max_parallel_subtasks,
                max_output_tokens=self.max_output_tokens,
                max_continuations=self.max_continuations,
                tolerated_failures=self.tolerated_failures,
                review_plan=self.review_plan,
            )
            retry = RetryPolicy(max_attempts=self.max_attempts)
            budget = Budget(max_tokens=self.max_tokens, max_cost_usd=self.max_cost_usd)
            if self.max_duration is not None:
                budget.max_duration.FromNanoseconds(round(self.max_duration * 1e9))
        except ValueError as error:  # beyond 32 bits
            raise UsageError(f"a number is out of range: {error}") from None
        if retry.ListFields():
            config.retry.CopyFrom(retry)
        if budget.ListFields():
            config.budget.CopyFrom(budget)
        return config


def config_changes(config: Config, clear: Sequence[str] | None) -> "tuple[InstanceConfig, Sequence[str]]":
    """Give the values to set and, where fields are cleared, the update mask; raise UsageError.

    The names of fields are those of the API; hyphens are as good as underscores there.
    """
    values = config.to_message()
    if not clear:
        return values, ()
    cleared = [name.replace("-", "_") for name in clear]
    given = list(_paths_of(values))
    for name in cleared:
        if name in given:
            raise UsageError(f"--clear {name} and a value for it are given: give only one of them")
    return values, [*given, *cleared]


def _paths_of(message: "Message", owner: str = "") -> "Iterator[str]":
    for known, value in message.ListFields():
        if known.name in ("retry", "budget"):
            yield from _paths_of(value, f"{known.name}.")
        else:
            yield owner + known.name


def with_config_options(command: Callable[..., R]) -> Callable[..., R]:
    """Replace the parameter `config` of a command by the options of `Config`."""
    signature = inspect.signature(command)
    names = [field.name for field in fields(Config)]

    @functools.wraps(command)
    def wrapped(**options: Any) -> R:
        config = Config(**{name: options.pop(name) for name in names})
        return command(**options, config=config)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "config":
            parameters += inspect.signature(Config).parameters.values()
        else:
            parameters.append(parameter)
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapped


class StateName(Enum):
    """The states of an instance, as typed by a person."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING_FOR_PAUSE = "waiting-for-pause"
    WAITING = "waiting"
    COMPLETE = "complete"
    ERRORED = "errored"
    TERMINATED = "terminated"


def examples(*lines: str) -> str:
    """Format an epilogue for --help without wrapping its lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Read the prompt from its argument, file or stdin, and context from a pipe; raise UsageError."""
    if prompt is not None and file is not None:
        raise UsageError("give the prompt itself or --prompt-file, not both")
    if file is None and prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt: give one in quotes, pipe one in, or use --prompt-file")
    is_piped = prompt in (None, "-") if file is None else str(file) == "-"
    if file is not None:
        text = _read_file(file, "the prompt")
    else:
        data = (
            stdin_input.read_stdin("the prompt")
            if is_piped
            else (prompt or "").encode(errors="surrogateescape")
        )
        text = _decode_text(data, "the prompt")
    if not text.strip():
        raise UsageError(f"the prompt is empty: say what is to be done, as in {example('…')}")
    return text if is_piped else _with_context(text)


def _with_context(prompt: str) -> str:
    """Append piped context to the prompt, if there is any; raise UsageError where both are too long."""
    from orchestrator.core.create import MAX_PROMPT_BYTES  # noqa: PLC0415

    data = stdin_input.read_context(MAX_PROMPT_BYTES)
    if len(data) <= MAX_PROMPT_BYTES:
        context = _decode_text(data, "what is piped in as context")
        if not context.strip():
            return prompt
        text = f"{prompt.rstrip()}\n\n{stdin_input.code_block(context)}"
        if len(text.encode()) <= MAX_PROMPT_BYTES:
            typer.echo(f"context from stdin: {len(data):,} bytes", err=True)
            return text
    size = f"{len(data):,}" if len(data) <= MAX_PROMPT_BYTES else f"over {MAX_PROMPT_BYTES:,}"
    raise UsageError(
        f"the prompt has {len(prompt.encode()):,} bytes and the context that is piped in {size}: "
        f"together they may have {MAX_PROMPT_BYTES:,}; pipe in less"
    )


def _read_file(file: Path, what: str) -> str:
    """Read a text file, or for `-` stdin; `what` names the text in a note."""
    if str(file) == "-":
        return _decode_text(stdin_input.read_stdin(what), "stdin")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    return _decode_text(data, str(file))


def _decode_text(data: bytes, name: str) -> str:
    try:
        return decode(data)
    except ValueError as error:
        raise UsageError(f"{name} {error}") from None


@dataclass(frozen=True, slots=True)
class PlanInput:
    """A plan from a file; of which instance it was shown, at which of its events (empty, None: of none)."""

    subtasks: "Sequence[Subtask]"
    instance_id: str = ""
    sequence: int | None = None


def read_plan(file: Path) -> PlanInput:
    """Read subtasks from a JSON file; raise UsageError that names what is at fault."""
    from orchestrator.cli.json_input import parse  # noqa: PLC0415
    from orchestrator.v1.instance_pb2 import Subtask  # noqa: PLC0415

    name = "stdin" if str(file) == "-" else str(file)
    expected = f"{name} must be a JSON list of subtasks, {_PLAN_EXAMPLE}"
    text = _read_file(file, "the plan")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{expected}: {error}") from None
    instance_id, sequence = "", None
    if isinstance(entries, dict) and entries.keys() <= {"id", "state", "lastSequence", "summary", "subtasks"}:
        # As `review ID --json` prints it.
        instance_id, sequence = entries.get("id", ""), entries.get("lastSequence")
        if sequence is not None and (type(sequence) is not int or sequence < 1):  # a bool is an int, too
            raise UsageError(f"lastSequence of {name} must be a whole number from 1")
        entries = entries.get("subtasks")
    if not isinstance(entries, list):
        raise UsageError(expected)
    subtasks = []
    for number, entry in enumerate(entries, 1):
        try:
            subtasks.append(parse(entry, Subtask()))
        except UsageError as error:
            raise UsageError(f"subtask {number} of {name}: {error}") from None
    return PlanInput(subtasks, instance_id, sequence)


def read_requests(file: Path) -> "list[CreateInstanceRequest]":
    """Read requests from a file of JSON lines; raise UsageError that names the line at fault."""
    from orchestrator.cli.json_input import parse  # noqa: PLC0415
    from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest  # noqa: PLC0415

    name = "stdin" if str(file) == "-" else str(file)
    text = _read_file(file, "requests")
    requests = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise UsageError(f"line {number} of {name} is no JSON object: {_LINE_EXAMPLE}")
            try:
                requests.append(parse(entry, CreateInstanceRequest()))
            except UsageError as error:
                raise UsageError(f"line {number} of {name}: {error}") from None
    if not requests:
        raise UsageError(f"{name} holds no requests: {_LINE_EXAMPLE}")
    return requests


def read_labels(labels: Sequence[str] | None) -> dict[str, str]:
    """Split `key=value`; raise UsageError where there is no `=`."""
    split = [label.partition("=") for label in labels or ()]
    for key, equals, value in split:
        if not key or not equals:
            raise UsageError(f"--label {key + equals + value!r} must be KEY=VALUE, as in --label team=infra")
    return {key: value for key, _, value in split}


def read_files(directory: Path | None, paths: Sequence[Path] | None) -> "Sequence[File]":
    """Read the files to be given, and say on stderr what was passed over; raise UsageError."""
    if directory is None and not paths:
        return ()
    from orchestrator.cli import project  # noqa: PLC0415
    from orchestrator.v1.instance_pb2 import File  # noqa: PLC0415

    collected = project.collect(directory, paths or ())
    for line in collected.skipped:
        typer.echo(line, err=True)
    return [File(path=path, content=text) for path, text in collected.files.items()]


def build_request(
    prompt: str,
    config: "InstanceConfig",
    *,
    instance_id: str,
    request_id: str,
    labels: Sequence[str] | None,
    files: "Sequence[File]" = (),
) -> "CreateInstanceRequest":
    """Build the request, with a generated request id where none is given, so that it can be resent."""
    from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest  # noqa: PLC0415

    return CreateInstanceRequest(
        prompt=prompt,
        id=instance_id,
        request_id=request_id or uuid.uuid4().hex,
        config=config if config.ListFields() else None,
        labels=read_labels(labels),
        files=files,
    )
