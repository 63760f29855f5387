"""The option `--plan` of `run`, a flag with an optional file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand


class PlanCommand(TyperCommand):
    """A command that parses `--plan FILE` as `--plan-file FILE`, for Click has no optional option values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite the arguments, then parse them."""
        return super().parse_args(ctx, list(rewrite_plan_option(args)))


def rewrite_plan_option(arguments: Sequence[str]) -> Iterator[str]:
    """Replace each `--plan` that is followed by a file with `--plan-file`."""
    for number, argument in enumerate(arguments):
        if argument == "--":
            yield from arguments[number:]
            return
        if argument.startswith("--plan="):
            yield argument.replace("--plan=", "--plan-file=", 1)
        elif argument == "--plan" and _is_plan_file(arguments[number + 1 :]):
            yield "--plan-file"
        else:
            yield argument


def _is_plan_file(following: Sequence[str]) -> bool:
    """Return whether the next argument is a plan file rather than the prompt."""
    return bool(following) and (following[0].endswith(".json") or Path(following[0]).is_file())
