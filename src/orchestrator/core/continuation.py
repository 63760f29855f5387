"""How an answer goes on that was cut off at the token limit.

What was written is recorded as a part of the attempt, and the model is asked to go on behind it: in the same
attempt as long as parts are left, no client asks to pause and the budget allows it, else in the next one.
"""

from typing import Final, NamedTuple

from orchestrator.core import budget, limits
from orchestrator.core.budget import Elapsed
from orchestrator.core.instance import (
    PLANNING,
    WAITING_FOR_PAUSE,
    Instance,
    Work,
    WorkKey,
)
from orchestrator.v1 import instance_pb2 as pb

DEFAULT_CONTINUATIONS: Final = 16
"""Of an instance that says nothing else; those recorded before there was such a limit have this one too."""
_MOST_TOKENS: Final = int(limits.of(pb.InstanceConfig, "max_output_tokens").maximum)


class Part(NamedTuple):
    """What a call that was cut off adds to an answer."""

    text: str
    """Without what it repeats of the text before it."""
    replaces: bool = False
    """Whether it takes the place of the text before it: the model began its answer anew."""
    shown: str | None = None
    """What clients see of it; None: its text."""


def max_continuations(config: pb.InstanceConfig) -> int:
    """Return how often an answer is continued within one attempt."""
    return config.max_continuations if config.HasField("max_continuations") else DEFAULT_CONTINUATIONS


def max_answer_tokens(config: pb.InstanceConfig) -> int:
    """Return how many tokens an answer can have with all its parts."""
    return config.max_output_tokens * (1 + max_continuations(config))


def token_limit(instance: Instance, work: Work) -> int:
    """Return the token limit of a call: twice as much each time that one was used up without an answer."""
    return min(instance.config.max_output_tokens << work.raised_limits, _MOST_TOKENS)


def has_parts_left(instance: Instance, work: Work) -> bool:
    """Return whether an attempt that was cut off once more may be continued."""
    return work.parts < max_continuations(instance.config)


def interruption(instance: Instance, key: WorkKey, elapsed_s: Elapsed) -> str:
    """Return why the next part of an attempt must not be asked for now; empty: it may.

    A pause lets what runs finish: a plan too, while workers work on what is there of it.
    """
    if exceeded := budget.exceeded(instance, elapsed_s):
        return exceeded.message
    is_pausing = instance.state == WAITING_FOR_PAUSE
    if is_pausing and not (key == PLANNING and instance.open_calls > 1):
        return "the instance pauses between two parts of the answer"
    return ""
