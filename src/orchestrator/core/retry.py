"""When to try again."""

from orchestrator.v1 import instance_pb2 as pb


def retry_time_s(
    policy: pb.RetryPolicy, *, failures: int, now_s: float, jitter: float, retry_after_s: float | None = None
) -> float | None:
    """When the next attempt may begin, in seconds since the epoch; None: not at all.

    `failures` counts the attempts that failed so far, this one included. Delays grow exponentially to the
    policy's cap; `jitter`, 0 to 1, takes off up to half, so that what failed together does not come back
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
    return now_s + max(delay, retry_after_s or 0.0)
