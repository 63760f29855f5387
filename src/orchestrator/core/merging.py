"""Outputs that are too long for one synthesis are merged first, in groups, tree-wise and in parallel.

A merge is one more subtask that depends on what it merges: it is planned, worked on, retried and recorded as
any other, by the big model.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Final

from orchestrator.core import context, continuation
from orchestrator.core.instance import COMPLETED, Instance, Subtask, Work

DEFAULT_CHARACTERS: Final = 300_000
"""How many characters of outputs a call is given unless the configuration says otherwise."""
_CHARACTERS_PER_TOKEN: Final = 3
"""At least, of code and prose, so that a merge can write down what it is given."""
_LEAST_CHARACTERS: Final = 2000
"""The lower bound, however often a model rejects its input as too long."""


def limit(instance: Instance, work: Work) -> int:
    """Return the limit of a call's input in characters: halved each time the input was too long."""
    most = instance.config.max_input_characters or DEFAULT_CHARACTERS
    return max(most >> work.too_long, min(most, _LEAST_CHARACTERS))


def context_limit(instance: Instance, work: Work) -> int:
    """Return how many characters of its input files and of earlier work the synthesis or a merge is given.

    At most a quarter of what it is given in all.
    """
    if not context.is_there(instance):
        return 0
    return min(limit(instance, work) // 4, context.size_for_synthesis(instance))


def outputs_limit(instance: Instance, work: Work) -> int:
    """Return how many characters of outputs the synthesis or a merge is given."""
    return limit(instance, work) - context_limit(instance, work)


def can_shrink(instance: Instance, work: Work) -> bool:
    """Return whether the input of a call can be reduced further."""
    return limit(instance, work) > _LEAST_CHARACTERS


def sources(instance: Instance) -> Sequence[Subtask]:
    """Return the completed subtasks that the synthesis reads: those that no merge includes."""
    merged = {name for subtask in instance.subtasks.values() if subtask.merges for name in subtask.depends_on}
    return [
        subtask
        for subtask in instance.subtasks.values()
        if subtask.work.state == COMPLETED and subtask.id not in merged
    ]


def merges(instance: Instance) -> Sequence[Subtask]:
    """Return the merges due before the synthesis; none: its sources fit."""
    found = sources(instance)
    most = outputs_limit(instance, instance.synthesis)
    if len(found) < 2 or sum(len(subtask.output) for subtask in found) <= most:  # noqa: PLR2004  a pair
        return ()
    names = (name for number in count(1) if (name := f"merge-{number}") not in instance.subtasks)
    writable = continuation.max_answer_tokens(instance.config) * _CHARACTERS_PER_TOKEN
    groups = _groups(found, min(most, writable))
    return [_merge(next(names), group) for group in groups if len(group) > 1]


def _merge(name: str, group: Iterable[Subtask]) -> Subtask:
    parts = tuple(subtask.id for subtask in group)
    return Subtask(
        id=name,
        title=f"Merge {', '.join(parts)}"[:200],
        instructions="Put these outputs together into a shorter one.",
        depends_on=parts,
        merges=True,
    )


def _groups(found: Sequence[Subtask], most: int) -> Sequence[Sequence[Subtask]]:
    """Group neighbours that fit together, going in and coming out.

    There are at least two in a group, so there are fewer after each round.
    """
    groups: list[list[Subtask]] = [[]]
    size = 0
    for subtask in found:
        if len(groups[-1]) > 1 and size + len(subtask.output) > most:
            groups.append([])
            size = 0
        groups[-1].append(subtask)
        size += len(subtask.output)
    return groups
