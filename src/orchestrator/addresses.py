"""Whether an address can be listened on, asked before anything is started that would be lost if not."""

import socket

from orchestrator.errors import SettingsError
from orchestrator.settings import split_address


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
