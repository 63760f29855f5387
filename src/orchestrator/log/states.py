"""Folded instances over any log: kept at hand, and topped up with what was appended since.

A state that is returned is durable, and at least as new as the log was when it was asked for.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import Instance
from orchestrator.core.state import fold
from orchestrator.core.workers import decode, encode
from orchestrator.log.base import EventLog, Head, Page
from orchestrator.offload import offload
from orchestrator.v1.instance_pb2 import Worker

_MAX_CHARACTERS: Final = 16 * 1024 * 1024
"""How much text the kept states may hold together."""
_LARGE_PAGE_BYTES: Final = 512 * 1024
"""A page that is larger is folded in a thread."""
_BASE_CHARACTERS: Final = 4096
"""What a state counts for besides its texts."""


class Loaded(NamedTuple):
    """An instance as it is recorded, and its incarnation."""

    ref: InstanceRef
    instance: Instance


class StateStore:
    """Folds instances, keeping as many states as have room, those used last."""

    def __init__(self, log: EventLog, max_characters: int = _MAX_CHARACTERS) -> None:
        self._log = log
        self._max_characters = max_characters
        self._kept: OrderedDict[int, tuple[Instance, int]] = OrderedDict()
        """By incarnation: the state, and how many characters it counts for."""
        self._characters = 0
        self._catalogues: dict[str, tuple[Worker, ...]] = {}
        """By digest: as many as the service's settings have had."""

    async def load(self, key: InstanceKey) -> Loaded:
        """Give the instance that goes by a key now; raise InstanceNotFoundError."""
        return await self.at(await self._log.head(key))

    async def at(self, head: Head) -> Loaded:
        """Give an instance as it is recorded, at least up to `head`; raise InstanceNotFoundError."""
        kept = self._kept.get(head.ref.incarnation)
        instance = kept[0] if kept else Instance()
        if kept:
            self._kept.move_to_end(head.ref.incarnation)
        at_end = instance.last_sequence >= head.last_sequence
        while not at_end:
            page = await self._log.read(head.ref, instance.last_sequence)
            is_large = len(page.data) > _LARGE_PAGE_BYTES
            instance = await offload(partial(_fold, page, instance)) if is_large else _fold(page, instance)
            at_end = page.at_end
        instance = await self.resolve(instance)
        self.keep(head.ref, instance)
        return Loaded(head.ref, instance)

    async def store_catalogue(self, workers: Sequence[Worker]) -> str:
        """Keep a catalogue in the log for the instances to come, and give the digest that names it.

        Raise UnavailableError.
        """
        digest, data = encode(workers)
        await self._log.store_catalogue(digest, data)
        return digest

    async def resolve(self, instance: Instance) -> Instance:
        """Give the instance with the workers of the catalogue that its configuration names, if it names one.

        All instances share them. Raise StorageError where the log does not have it.
        """
        digest = instance.config.catalogue
        if not digest or instance.workers:
            return instance
        workers = self._catalogues.get(digest)
        if workers is None:
            workers = self._catalogues[digest] = decode(await self._log.catalogue(digest))
        return replace(instance, workers=workers)

    def keep(self, ref: InstanceRef, instance: Instance) -> None:
        """Keep a state at hand; it must be durable. An older one than is kept changes nothing."""
        kept = self._kept.get(ref.incarnation)
        if kept:
            if kept[0].last_sequence >= instance.last_sequence:
                return
            self._characters -= kept[1]
        characters = _characters(instance)
        self._kept[ref.incarnation] = (instance, characters)
        self._kept.move_to_end(ref.incarnation)
        self._characters += characters
        while self._characters > self._max_characters and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._characters -= freed

    def forget(self, ref: InstanceRef) -> None:
        """Drop the state of an instance that was deleted."""
        if kept := self._kept.pop(ref.incarnation, None):
            self._characters -= kept[1]


def _fold(page: Page, instance: Instance) -> Instance:
    return fold(page.events(), instance)


def _characters(instance: Instance) -> int:
    texts = sum(len(subtask.output) + len(subtask.instructions) for subtask in instance.subtasks.values())
    whole = len(instance.prompt) + len(instance.summary) + len(instance.final_result)
    return _BASE_CHARACTERS + whole + texts + instance.given_characters + instance.config.ByteSize()
