"""Whether an address can be listened on, asked before anything is started that would be lost if not."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from orchestrator.errors import SettingsError
from orchestrator.settings import split_address

_LONGEST_FOLDER_BYTES: Final = 80
"""Of one with sockets in it: a socket's path has at most 107, on some systems 103."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for sockets that no other user reaches, and remove it with what is in it."""
    usual = tempfile.gettempdir()
    is_short = len(os.fsencode(usual)) + len("/orchestrator-12345678") <= _LONGEST_FOLDER_BYTES
    base = usual if is_short else "/tmp"  # noqa: S108  the folder in it is made for this user alone
    with tempfile.TemporaryDirectory(prefix="orchestrator-", dir=base) as folder:
        yield Path(folder)


def free_port(address: str, setting: str) -> int:
    """Bind `host:port` once and give the port, a free one for 0; raise SettingsError naming the setting."""
    host, port = split_address(address, setting)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier server that are still closing are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise SettingsError(
                f"{setting} is {address}: port {port} cannot be had ({error.strerror}). "
                "Stop what listens there, or set another address"
            ) from None
        bound: int = probe.getsockname()[1]
    return bound
