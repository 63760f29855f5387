"""What a shell offers where a command takes an instance's id."""

import asyncio
import re
from typing import Final

import typer

from orchestrator.errors import OrchestratorError
from orchestrator.settings import Settings

_PATIENCE_S: Final = 0.5
"""Whoever has pressed Tab waits."""
_SHOWN: Final = 100
_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Shells evaluate what is offered: nothing else is, whatever answers."""


def instance_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest instances whose id begins like this, with their states; none where no service answers."""
    try:
        settings = Settings.load(address=context.params.get("address"))
        found = asyncio.run(_newest(settings.grpc_address, incomplete))
    except (OrchestratorError, OSError):
        return []
    return [(name, status) for name, status in found if name.startswith(incomplete) and _ID.fullmatch(name)]


async def _newest(address: str, prefix: str) -> list[tuple[str, str]]:
    from orchestrator.client import Client  # noqa: PLC0415
    from orchestrator.core.wire import STATUS  # noqa: PLC0415

    async with Client(address, timeout_s=_PATIENCE_S) as client:
        page = await client.list(page_size=_SHOWN, id_prefix=prefix)
    return [(instance.id, STATUS.get(instance.state, "")) for instance in page.instances]
