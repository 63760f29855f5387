"""The `orchestrator` command.

Importing gRPC, Rich and httpx takes longer than many a command does: each imports what it needs when it runs.
"""

import sys
from io import TextIOWrapper

from typer.exceptions import TyperException

from orchestrator.cli.commands import app
from orchestrator.cli.exits import complain


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a narrow locale must not turn an answer into a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="orchestrator", standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        complain(f"{error.format_message().rstrip('.')}{hint}")
        code = error.exit_code
    sys.exit(code)
