"""Compute retry delays."""

from typing import Final

from orchestrator.v1 import instance_pb2 as pb

MAX_RETRY_AFTER_S: Final = 600.0
"""The cap on an endpoint's Retry-After: some ask for years. Retrying too early costs one call."""


def delay_s(
    policy: pb.RetryPolicy, *, failures: int, jitter: float, retry_after_s: float | None = None
) -> float | None:
    """Return the seconds from a failure to the next attempt; None: there is none.

    `failures` counts the attempts that failed so far, this one included. Delays grow exponentially to the
    policy's cap; `jitter`, 0 to 1, takes off up to half, so that calls that failed together are not retried
    together ("equal jitter", AWS Architecture Blog, 2015). An endpoint's own Retry-After is a lower bound.
    """
    if failures >= policy.max_attempts:
        return None
    longest = policy.max_delay.ToTimedelta().total_seconds()
    delay = policy.initial_delay.ToTimedelta().total_seconds()
    for _ in range(failures - 1):
        delay *= policy.multiplier
        if delay >= longest:
            break
    delay = min(delay, longest) * (1 - jitter / 2)
    return min(max(delay, retry_after_s or 0.0), longest_delay_s(policy))


def longest_delay_s(policy: pb.RetryPolicy) -> float:
    """Return the longest delay that there can be, in seconds."""
    return max(policy.max_delay.ToTimedelta().total_seconds(), MAX_RETRY_AFTER_S)
