"""Shell completion of instance ids."""

import asyncio
import re
from typing import Final

import typer

from orchestrator.errors import OrchestratorError
from orchestrator.settings import Settings

_TIMEOUT_S: Final = 0.5
"""The shell blocks meanwhile."""
_MAX_OFFERED: Final = 100
_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Shells evaluate completions: ids of another form are dropped, since any server may answer."""


def instance_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """List the newest instances whose id has the prefix, with their states; none without a service."""
    try:
        settings = Settings.load(
            address=context.params.get("address"), token_file=context.params.get("token_file")
        )
        found = asyncio.run(_newest_instances(settings, incomplete))
    except (OrchestratorError, OSError):
        return []
    return [(name, status) for name, status in found if name.startswith(incomplete) and _ID.fullmatch(name)]


async def _newest_instances(settings: Settings, prefix: str) -> list[tuple[str, str]]:
    from orchestrator.cli.connection import open_client  # noqa: PLC0415
    from orchestrator.core.wire import STATUS  # noqa: PLC0415

    async with open_client(settings.grpc_address, settings, timeout_s=_TIMEOUT_S) as client:
        page = await client.list(page_size=_MAX_OFFERED, id_prefix=prefix)
    return [(instance.id, STATUS.get(instance.state, "")) for instance in page.instances]
