"""The `orchestrator` command.

Importing gRPC, Rich and httpx takes longer than many a command does: each imports what it needs when it runs.
"""

import os
import sys

from orchestrator.errors import SettingsError
from orchestrator.installation import requires


def main() -> None:
    """Run the command line and exit with its code; say what to install where only the client is."""
    # What gRPC writes of connections that fail, the command says in words of its own.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with requires("cli", "the command `orchestrator`"):
            from orchestrator.cli import command_line  # noqa: PLC0415
    except SettingsError as error:
        print(f"error: {error}; [server] in place of [cli] runs a service too", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    command_line.run()
