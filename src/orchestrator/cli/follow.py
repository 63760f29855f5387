"""Following an instance to its end, told by a reporter."""

import contextlib
import shlex
from typing import Final

from orchestrator.cli.progress import Progress
from orchestrator.cli.reporters import Reporter
from orchestrator.cli.text import command
from orchestrator.client import Client, OutputDelta
from orchestrator.core.instance import WAITING
from orchestrator.settings import FILE, Settings

_DEFAULTS: Final = Settings()


async def follow(
    client: Client,
    instance_id: str,
    progress: Progress,
    reporter: Reporter,
    *,
    after: int = 0,
    to_its_end: bool = True,
    until_review: bool = False,
    live: bool = False,
) -> None:
    """Take in each event, and with `live` the text that models write, and let the reporter tell it.

    Unless `to_its_end`, until what is recorded now has been told; with `until_review` no further than to
    where a plan waits for one.
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
                    if until_review and progress.instance.state == WAITING:
                        return


def resume_command(instance_id: str, settings: Settings, *, live: bool) -> str:
    """The command that follows an instance again, as it was followed."""
    where = address_flag(settings)
    return command(f"events {instance_id} --follow{' -v' if live else ''}{where}")


def detached(instance_id: str, settings: Settings, *, live: bool) -> str:
    """What to say to whoever stops following an instance that goes on."""
    where = address_flag(settings)
    return (
        f"detached: {instance_id} goes on without you\n"
        f"  to come back: {resume_command(instance_id, settings, live=live)}\n"
        f"  to stop it:   {command(f'terminate {instance_id}{where}')}\n"
        f"  its result:   {command(f'result {instance_id}{where}')}"
    )


def on_its_way(instance_id: str, settings: Settings) -> str:
    """What to say to whoever has created an instance and left it to the service."""
    where = address_flag(settings)
    return (
        f"  to follow it: {resume_command(instance_id, settings, live=False)}\n"
        f"  its result:   {command(f'result {instance_id}{where}')}"
    )


def review_is_due(instance_id: str, settings: Settings) -> str:
    """What to say to whoever may decide on a plan that waits for review."""
    review = command(f"review {instance_id}{address_flag(settings)}")
    return (
        f"the plan of {instance_id} waits for review\n"
        f"  to see it:     {review}\n"
        f"  to approve it: {review} --approve\n"
        f'  to reject it:  {review} --reject "what should be better"'
    )


def address_flag(settings: Settings) -> str:
    """The flag that leads another command to the same service; empty where it goes there by itself."""
    return flags(settings, grpc_address="--address")


def flags(settings: Settings, **named: str) -> str:
    """The flags that give another command these settings, each by its own name.

    Not those that it has by itself: the defaults, and what is in the file. A variable may be this one's.
    """
    return "".join(
        f" {flag} {shlex.quote(getattr(settings, name))}"
        for name, flag in named.items()
        if getattr(settings, name) != getattr(_DEFAULTS, name) and FILE not in settings.name_of(name)
    )
