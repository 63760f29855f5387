"""Following an instance to its end, told by a reporter."""

import contextlib

from orchestrator.cli.progress import Progress
from orchestrator.cli.reporters import Reporter
from orchestrator.cli.text import command
from orchestrator.client import Client, OutputDelta


async def follow(
    client: Client,
    instance_id: str,
    progress: Progress,
    reporter: Reporter,
    *,
    after: int = 0,
    to_its_end: bool = True,
    live: bool = False,
) -> None:
    """Take in each event, and with `live` the text that models write, and let the reporter tell it.

    Unless `to_its_end`, until what is recorded now has been told.
    """
    read = client.stream if live else client.stream_events
    items = read(instance_id, after_sequence=after, follow=to_its_end, on_cut=reporter.connection)
    async with contextlib.aclosing(items):
        with reporter:
            async for item in items:
                if isinstance(item, OutputDelta):
                    reporter.hear(item)
                else:
                    progress.apply(item)
                    reporter.show(item, progress)


def come_back(instance_id: str, *, live: bool) -> str:
    """The command that follows an instance again, as it was followed."""
    return command(f"events {instance_id} --follow" + (" -v" if live else ""))


def detached(instance_id: str, *, live: bool) -> str:
    """What to say to whoever stops following an instance that goes on."""
    return (
        f"detached: {instance_id} goes on without you\n"
        f"  to come back: {come_back(instance_id, live=live)}\n"
        f"  to stop it:   {command(f'terminate {instance_id}')}"
    )
