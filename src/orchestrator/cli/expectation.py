"""Acting only on what was seen: the sequence that a command expects, and what has happened since."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from orchestrator.cli.exit_codes import UsageError
from orchestrator.cli.text import pluralize
from orchestrator.client import Client, ServiceError

T = TypeVar("T")

_SHOWN_EVENTS: Final = 4
"""The most events that a message lists; of more, it lists the first and the last ones."""


async def call_expecting(
    client: Client, instance_id: str, expected: int | None, call: Callable[[str, int | None], Awaitable[T]]
) -> T:
    """Call with an instance and the sequence that it is expected to have; raise UsageError for another.

    The error says what has happened since.
    """
    try:
        return await call(instance_id, expected)
    except ServiceError as error:
        if error.reason != "SEQUENCE_MISMATCH" or expected is None:
            raise
        raise UsageError(await describe_change(client, instance_id, expected)) from None


async def describe_change(client: Client, instance_id: str, expected: int) -> str:
    """Describe in one line what has happened to an instance since a sequence."""
    from orchestrator.cli.progress import Progress  # noqa: PLC0415  the core is slow to import

    progress, lines = Progress(), []
    async for event in client.stream_events(instance_id, follow=False):
        progress.apply(event)
        if event.sequence > expected:
            lines.append(progress.describe(event))
    last = progress.instance.last_sequence
    if last < expected:
        return (
            f"{instance_id} is at event {last} and was expected at {expected}: another instance has the "
            "id now, or the number is wrong; nothing was changed"
        )
    if untold := lines[_SHOWN_EVENTS // 2 : -_SHOWN_EVENTS // 2]:
        lines[_SHOWN_EVENTS // 2 : -_SHOWN_EVENTS // 2] = [f"{pluralize(len(untold), 'event')} more"]
    return (
        f"{instance_id} has gone on since event {expected}: {'; '.join(lines)}. Nothing was changed: "
        f"look at it, then ask again, with --expected-sequence {last} if need be"
    )
