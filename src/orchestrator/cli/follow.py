"""Following an instance, and the messages that say how to follow it again."""

import asyncio
import contextlib
import shlex
from typing import Final

from orchestrator.cli.progress import Progress
from orchestrator.cli.reporters import Reporter
from orchestrator.cli.text import command
from orchestrator.client import Client, OutputDelta, ServiceError
from orchestrator.core.instance import WAITING
from orchestrator.settings import FILE, Settings

_DEFAULTS: Final = Settings()
_QUIET_S: Final = 2.0
"""Where nothing happens for so long, the service is asked why, and again after as long."""


async def follow(
    client: Client,
    instance_id: str,
    progress: Progress,
    reporter: Reporter,
    *,
    after: int = 0,
    until_end: bool = True,
    until_review: bool = False,
    live: bool = False,
) -> None:
    """Apply each event, and with `live` each text delta, and pass it to the reporter.

    Without `until_end`, stop after the events that are recorded now; with `until_review`, stop where a plan
    waits for review.
    """
    open_stream = client.stream if live else client.stream_events
    items = open_stream(
        instance_id, after_sequence=after, follow=until_end, on_disconnect=reporter.on_connection
    )
    async with contextlib.aclosing(items):
        with reporter:
            quiet = asyncio.create_task(_report_waiting(client, instance_id, progress, reporter))
            try:
                async for item in items:
                    if isinstance(item, OutputDelta):
                        reporter.on_delta(item)
                    else:
                        progress.apply(item)
                        reporter.on_event(item, progress)
                        if until_review and progress.instance.state == WAITING:
                            return
            finally:
                quiet.cancel()


async def _report_waiting(client: Client, instance_id: str, progress: Progress, reporter: Reporter) -> None:
    """Report why nothing happens, when nothing does: no event states it."""
    while True:
        last_sequence = progress.instance.last_sequence
        await asyncio.sleep(_QUIET_S)
        if progress.instance.last_sequence != last_sequence or not progress.may_wait:
            continue
        try:
            found = (await client.get(instance_id)).instance
        except ServiceError:
            continue  # the stream reports that the service is away
        if found.last_sequence == progress.instance.last_sequence:
            reporter.on_waiting(found.waiting_reason)


def resume_command(instance_id: str, settings: Settings, *, live: bool) -> str:
    """Build the command that follows an instance again with the same options."""
    option = address_option(settings)
    return command(f"events {instance_id} --follow{' -v' if live else ''}{option}")


def detached_message(instance_id: str, settings: Settings, *, live: bool) -> str:
    """Build the message for when following stops and the instance goes on."""
    option = address_option(settings)
    return (
        f"detached: {instance_id} goes on without you\n"
        f"  to come back: {resume_command(instance_id, settings, live=live)}\n"
        f"  to stop it:   {command(f'terminate {instance_id}{option}')}\n"
        f"  its result:   {command(f'result {instance_id}{option}')}"
    )


def created_message(instance_id: str, settings: Settings) -> str:
    """Build the message for an instance that is created and not followed."""
    option = address_option(settings)
    return (
        f"  to follow it: {resume_command(instance_id, settings, live=False)}\n"
        f"  its result:   {command(f'result {instance_id}{option}')}"
    )


def review_due_message(instance_id: str, settings: Settings, *, sequence: int | None = None) -> str:
    """Build the message for a plan that waits for review; `sequence` is the event at which it was shown.

    The command that decides names that event, so that a plan revised since then is not approved unread.
    """
    review = command(f"review {instance_id}{address_option(settings)}")
    expected = f" --expected-sequence {sequence}" if sequence else ""
    return (
        f"the plan of {instance_id} waits for review\n"
        f"  to see it:     {review}\n"
        f"  to approve it: {review} --approve{expected}\n"
        f'  to reject it:  {review} --reject "what should be better"{expected}'
    )


def address_option(settings: Settings) -> str:
    """Build the option that makes another command reach the same service; empty where the default does."""
    options = {"grpc_address": "--address"}
    options |= {
        name: f"--{name.replace('_', '-')}"
        for name in ("token_file", "tls_ca", "tls_client_cert", "tls_client_key")
    }
    return settings_options(settings, **options)


def settings_options(settings: Settings, **options: str) -> str:
    """Build the options that give another command these settings; `options` maps a setting to its option.

    Defaults and settings from the file are left out. Variables may be set for this process only.
    """
    return "".join(
        f" {flag} {shlex.quote(getattr(settings, name))}"
        for name, flag in options.items()
        if getattr(settings, name) != getattr(_DEFAULTS, name) and FILE not in settings.name_of(name)
    )
