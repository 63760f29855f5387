"""When to stop paying."""

from orchestrator.core.state import Failure, Instance


def exceeded(instance: Instance, now_s: float) -> Failure | None:
    """Why no further call may begin; None: it may."""
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
    deadline = deadline_s(instance)
    if deadline is not None and now_s >= deadline:
        return Failure(
            "DEADLINE_EXCEEDED",
            f"work has gone on for budget.max_duration, {_longest_s(instance):g} s: "
            "what is done is kept; raise it to go on",
        )
    return None


def deadline_s(instance: Instance) -> float | None:
    """When budget.max_duration is over, in seconds since the epoch; None: never, or work has not begun."""
    if not instance.config.budget.HasField("max_duration") or not instance.start_time_s:
        return None
    return instance.start_time_s + _longest_s(instance)


def _longest_s(instance: Instance) -> float:
    return instance.config.budget.max_duration.ToTimedelta().total_seconds()
