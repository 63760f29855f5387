"""Check the budget of an instance."""

from collections.abc import Callable

from orchestrator.core.instance import Failure, Instance

Elapsed = Callable[[float], float]
"""Returns the seconds elapsed since a recorded time, which is in seconds since the epoch."""


def exceeded(instance: Instance, elapsed_s: Elapsed) -> Failure | None:
    """Return why no further call may start; None: one may."""
    if not instance.config.HasField("budget"):
        return None
    budget = instance.config.budget
    used = instance.usage.input_tokens + instance.usage.output_tokens
    if budget.HasField("max_tokens") and used >= budget.max_tokens:
        return Failure(
            "BUDGET_EXCEEDED",
            f"{used} tokens are used and budget.max_tokens is {budget.max_tokens}: "
            "what is done is kept; raise the budget to go on",
        )
    if budget.HasField("max_cost_usd") and instance.usage.cost_usd >= budget.max_cost_usd:
        return Failure(
            "BUDGET_EXCEEDED",
            f"{instance.usage.cost_usd:.6g} USD are spent and budget.max_cost_usd is "
            f"{budget.max_cost_usd:g}: what is done is kept; raise the budget to go on",
        )
    left = left_s(instance, elapsed_s)
    if left is not None and left <= 0:
        return Failure(
            "DEADLINE_EXCEEDED",
            f"work has gone on for budget.max_duration, {_max_duration_s(instance):g} s: "
            "what is done is kept; raise it to go on",
        )
    return None


def left_s(instance: Instance, elapsed_s: Elapsed) -> float | None:
    """Return the seconds left of budget.max_duration; None: no limit, or work has not started."""
    if not instance.config.budget.HasField("max_duration") or not instance.start_time_s:
        return None
    return _max_duration_s(instance) - elapsed_s(instance.start_time_s)


def _max_duration_s(instance: Instance) -> float:
    return instance.config.budget.max_duration.ToTimedelta().total_seconds()
