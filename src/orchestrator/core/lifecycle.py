"""What a client may do to an instance that is there: each gives the events to append, or refuses.

What is allowed is what the transition table allows: nothing here says it a second time.
"""

from collections.abc import Sequence
from typing import Final

from orchestrator.core import config as core_config
from orchestrator.core import plan
from orchestrator.core.instance import TERMINAL, TERMINATED, Instance, State, subtask_of
from orchestrator.core.state import TRANSITIONS
from orchestrator.core.wire import STATUS
from orchestrator.errors import InvalidArgumentError, StateForbidsError
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1 import instance_pb2

_ACTIONS: Final = {
    "pause": "instance_pause_requested",
    "resume": "instance_resumed",
    "terminate": "instance_terminated",
    "retry": "instance_retried",
    "restart": "instance_restarted",
    "review": "plan_reviewed",
}
"""Each action's event: it is allowed where the table allows that."""


def allows(state: State, action: str) -> bool:
    """Return whether a state allows to pause, resume, terminate, retry, restart or review."""
    return _ACTIONS[action] in TRANSITIONS[state]


def forbidden(instance_id: str, state: State, action: str) -> StateForbidsError:
    """Say that a state does not allow an action, and what a client may do instead."""
    instead = [other for other in _ACTIONS if allows(state, other)]
    if state in TERMINAL:
        instead += ["fork", "delete"]
    mend = f"you can {', '.join(instead[:-1])} or {instead[-1]} it"
    if state not in TERMINAL and (action == "delete" or allows(TERMINATED, action)):
        mend = "terminate it first"
    return StateForbidsError(instance_id, state=STATUS[state], action=action, why=f"; {mend}")


def pause(instance: Instance) -> Sequence[pb.Event]:
    """Start nothing new; raise StateForbidsError."""
    _check(instance, "pause")
    return [pb.Event(instance_pause_requested=pb.InstancePauseRequested())]


def resume(instance: Instance) -> Sequence[pb.Event]:
    """Go on; raise StateForbidsError."""
    _check(instance, "resume")
    return [pb.Event(instance_resumed=pb.InstanceResumed())]


def terminate(instance: Instance) -> Sequence[pb.Event]:
    """Stop at once; raise StateForbidsError."""
    _check(instance, "terminate")
    return [pb.Event(instance_terminated=pb.InstanceTerminated(cut_off_calls=instance.open_calls))]


def retry(instance: Instance, changes: core_config.Changes) -> Sequence[pb.Event]:
    """Run again what failed, under changed config; raise StateForbidsError, InvalidArgumentError."""
    _check(instance, "retry")
    config = changes.apply(instance.config, instance.paths)
    if instance.is_planned and (changes.values.subtasks or config.subtasks != instance.config.subtasks):
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            "config.subtasks cannot change a plan that is made: fork the instance at STAGE_PLAN",
            field="config.subtasks",
        )
    return [pb.Event(instance_retried=pb.InstanceRetried(config=config))]


def restart(instance: Instance, changes: core_config.Changes) -> Sequence[pb.Event]:
    """Begin anew under changed config; raise StateForbidsError, InvalidArgumentError."""
    _check(instance, "restart")
    config = changes.apply(instance.config, instance.paths)
    return [pb.Event(instance_restarted=pb.InstanceRestarted(config=config))]


def review(
    instance: Instance,
    decision: pb.Decision.ValueType,
    subtasks: Sequence[instance_pb2.Subtask],
    feedback: str,
) -> Sequence[pb.Event]:
    """Decide on a plan that waits; raise StateForbidsError, InvalidArgumentError."""
    if decision not in (pb.DECISION_APPROVE, pb.DECISION_REJECT):
        raise InvalidArgumentError(
            "CONFIG_INVALID", "decision must be DECISION_APPROVE or DECISION_REJECT", field="decision"
        )
    if subtasks and decision != pb.DECISION_APPROVE:
        raise InvalidArgumentError(
            "PLAN_INVALID", "an edited plan goes with DECISION_APPROVE", field="subtasks"
        )
    if feedback and decision != pb.DECISION_REJECT:
        raise InvalidArgumentError("CONFIG_INVALID", "feedback goes with DECISION_REJECT", field="feedback")
    _check(instance, "review")
    if subtasks:
        try:
            plan.validate(map(subtask_of, subtasks), instance.config.max_subtasks, instance.paths)
        except plan.PlanError as error:
            raise InvalidArgumentError("PLAN_INVALID", str(error), field="subtasks") from None
    reviewed = pb.PlanReviewed(decision=decision, subtasks=subtasks, feedback=feedback)
    return [pb.Event(plan_reviewed=reviewed)]


def _check(instance: Instance, action: str) -> None:
    if not allows(instance.state, action):
        raise forbidden(instance.id, instance.state, action)
