"""How a command ends: its exit code, and one line on stderr that says what to do."""

import functools
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec, TypeVar

import typer

from orchestrator.cli import output
from orchestrator.cli.output import OutputError
from orchestrator.cli.text import one_line
from orchestrator.errors import OrchestratorError, SettingsError

P = ParamSpec("P")
R = TypeVar("R")


class ExitCode(IntEnum):
    """Exit codes of the command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SERVICE = 3
    REVIEW_DUE = 4
    TIMED_OUT = 124  # as timeout(1)
    INTERRUPTED = 130  # 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE
    STOPPED = 143  # 128 + SIGTERM


class UsageError(OrchestratorError):
    """The arguments or the input are wrong."""


class NoServiceError(OrchestratorError):
    """No service answers, or it cannot take the request now."""


def print_error(message: str) -> None:
    """Print the error in one line on stderr."""
    print(f"error: {one_line(message)}", file=sys.stderr)  # noqa: T201  the command's own voice


def reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that its errors become one line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (OrchestratorError, OSError) as error:
            raise typer.Exit(report_error(error)) from None

    return wrapped


def report_error(error: OrchestratorError | OSError) -> ExitCode:
    """Print the error unless the pipe is broken; return the exit code."""
    if isinstance(error, OutputError | BrokenPipeError):
        output.discard_stdout()
    if isinstance(error, BrokenPipeError):  # the reader has closed the pipe
        return ExitCode.BROKEN_PIPE
    if isinstance(error, OSError):
        print_error(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    elif getattr(error, "reason", "") == "TOKEN_MISSING":
        print_error(
            "the service asks who you are, and there are no credentials: set ORCHESTRATOR_TOKEN, or name the "
            "file of a token with --token-file"
        )
    else:
        print_error(str(error))
    return exit_code_of(error)


def exit_code_of(error: OrchestratorError | OSError) -> ExitCode:
    """Map an error to its exit code."""
    if isinstance(error, UsageError | SettingsError | OutputError):
        return ExitCode.USAGE
    if isinstance(error, NoServiceError) or "grpc" not in sys.modules:
        return ExitCode.NO_SERVICE
    import grpc  # noqa: PLC0415  only looked at when a command has imported it

    from orchestrator.client import ServiceError  # noqa: PLC0415

    refusals = (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    )
    refused = isinstance(error, ServiceError) and error.code in refusals
    return ExitCode.USAGE if refused else ExitCode.NO_SERVICE
