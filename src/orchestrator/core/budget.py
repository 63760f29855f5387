"""When to stop paying."""

from orchestrator.core.state import Failure, Instance


def exceeded(instance: Instance, now_s: float) -> Failure | None:
    """Why no further call may begin; None: it may."""
    budget = instance.config.budget
    used = instance.usage.input_tokens + instance.usage.output_tokens
    if budget.HasField("max_tokens") and used >= budget.max_tokens:
        return Failure(
            "BUDGET_EXCEEDED",
            f"{used} tokens are used and budget.max_tokens is {budget.max_tokens}: "
            "what is done is kept; raise the budget to go on",
        )
    if budget.HasField("max_duration") and instance.start_time_s:
        longest_s = budget.max_duration.ToTimedelta().total_seconds()
        if now_s - instance.start_time_s >= longest_s:
            return Failure(
                "DEADLINE_EXCEEDED",
                f"work has gone on for budget.max_duration, {longest_s:g} s: "
                "what is done is kept; raise it to go on",
            )
    return None
