"""`retry` of many instances by filter: each that is listed, as it was listed.

A loop of the client over ListInstances, not an RPC: each retry is an event of one instance, so an RPC could
not be atomic either; a loop shows how far it is, stops where it is interrupted, and is the same over any log.
What it needs to be safe is in the single retry: `expected_sequence`. An instance that went on since it was
listed is left alone, so that a second run, or two at once, retry nothing twice.
"""

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import typer

from orchestrator.cli.reporters import print_json
from orchestrator.cli.tables import print_instances
from orchestrator.cli.text import one_line, pluralize
from orchestrator.client import Client, ServiceError
from orchestrator.v1.instance_pb2 import Instance, InstanceConfig, State

_PAGE_SIZE: Final = 1000
_GONE_ON: Final = ("SEQUENCE_MISMATCH", "STATE_FORBIDS", "INSTANCE_NOT_FOUND")
"""Reasons of a refusal after which the instance is skipped: another client changed or deleted it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """Which instances to retry, and how the command answers."""

    states: Sequence[str]
    """Lower-case, as in `errored`."""
    reasons: Sequence[str] = ()
    """Only instances of which the failure, or that of a subtask, has one of these. Empty: any."""
    labels: Mapping[str, str]
    is_dry_run: bool = False
    asks: bool = True
    """Whether to ask in a terminal before anything is retried."""
    as_json: bool = False


async def retry_all(client: Client, bulk: Bulk, config: InstanceConfig, update_mask: Sequence[str]) -> None:
    """Retry each instance that fits and is as it was listed; raise ServiceError where the service goes.

    What was retried by then stays so: the same command again does the rest.
    """
    listed = [instance async for instance in _fitting(client, bulk)]
    if bulk.is_dry_run:
        _show(listed, as_json=bulk.as_json)
        return
    if listed and bulk.asks and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"retry {pluralize(len(listed), 'instance')}?", abort=True, err=True)
    retried = 0
    for number, instance in enumerate(listed, 1):
        try:
            answer = await client.retry(
                instance.id, config, update_mask=update_mask, expected_sequence=instance.last_sequence
            )
        except ServiceError as error:
            if error.reason not in _GONE_ON:
                _tell(f"{retried} of {len(listed)} retried: the same command again does the rest")
                raise
            _tell(f"{instance.id} has gone on since it was listed: left as it is")
            continue
        retried += 1
        if bulk.as_json:
            print_json(answer)
        else:
            typer.echo(f"{instance.id} is retried ({number} of {len(listed)})")
    _tell(f"{pluralize(retried, 'instance')} retried" if listed else "no instance fits: nothing to retry")


async def _fitting(client: Client, bulk: Bulk) -> AsyncIterator[Instance]:
    """List what fits, newest first."""
    states = [State.Value(f"STATE_{name.upper()}") for name in bulk.states]
    reasons = {reason.upper().replace("-", "_") for reason in bulk.reasons}
    token = ""
    while True:
        page = await client.list(page_size=_PAGE_SIZE, page_token=token, states=states, labels=bulk.labels)
        for instance in page.instances:
            if not reasons or reasons & _reasons_of(instance):
                yield instance
        token = page.next_page_token
        if not token:
            return


def _reasons_of(instance: Instance) -> set[str]:
    return {instance.error.reason, *(subtask.error.reason for subtask in instance.subtasks)} - {""}


def _show(instances: Sequence[Instance], *, as_json: bool) -> None:
    if as_json:
        for instance in instances:
            print_json(instance)
    elif instances:
        print_instances(instances)
    _tell(f"{pluralize(len(instances), 'instance')} would be retried")


def _tell(line: str) -> None:
    typer.echo(one_line(line), err=True)
