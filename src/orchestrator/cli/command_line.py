"""The command line: from what was typed to an exit code."""

import sys

from typer.exceptions import TyperException

from orchestrator.cli import output
from orchestrator.cli.commands import app
from orchestrator.cli.exit_codes import print_error, report_error
from orchestrator.cli.output import OutputError


def run() -> None:
    """Run the command line and exit with its code."""
    output.set_up_streams()
    try:
        code = app(prog_name="orchestrator", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        print_error(f"{error.format_message().rstrip('.')}{hint}")
        code = error.exit_code
    except (OutputError, BrokenPipeError) as error:
        code = report_error(error)
    sys.exit(code)
