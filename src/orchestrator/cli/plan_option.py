"""`--plan` of `run`, which stands alone or has a file behind it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand


class PlanCommand(TyperCommand):
    """A command whose `--plan FILE` is read as `--plan-file FILE`: an option has a value or has none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what is left when that is done."""
        return super().parse_args(ctx, list(tell_apart(args)))


def tell_apart(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with `--plan-file` for each `--plan` that has a file behind it."""
    for number, argument in enumerate(arguments):
        if argument == "--":
            yield from arguments[number:]
            return
        if argument.startswith("--plan="):
            yield argument.replace("--plan=", "--plan-file=", 1)
        elif argument == "--plan" and _is_file(arguments[number + 1 :]):
            yield "--plan-file"
        else:
            yield argument


def _is_file(following: Sequence[str]) -> bool:
    """Whether what follows is a plan's file rather than the prompt."""
    return bool(following) and (following[0].endswith(".json") or Path(following[0]).is_file())
