"""Fork an instance: copy its events up to a stage."""

from collections.abc import Sequence
from typing import Final

from orchestrator.core import config
from orchestrator.core.continuation import Part
from orchestrator.core.create import NewInstance
from orchestrator.core.events import completed, failed, started, whole_plan
from orchestrator.core.instance import COMPLETED, FAILED, PLANNING, SETTLED, Failure, Instance, Subtask
from orchestrator.core.wire import STATUS, failure_message
from orchestrator.errors import InvalidArgumentError, StateForbidsError
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1 import orchestrator_pb2 as api

_STAGES: Final = (api.STAGE_PLAN, api.STAGE_SUBTASKS, api.STAGE_SYNTHESIS)


def fork(
    source: Instance, stage: api.Stage.ValueType, changes: config.Changes, *, new_id: str
) -> NewInstance:
    """Return a new instance with the source's prompt and labels that repeats a stage and all after it.

    Its history records each retained piece of work as one attempt, with the usage of all of the source's
    attempts. Raise StateForbidsError where the source has not come so far, and
    InvalidArgumentError.
    """
    if stage not in _STAGES:
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            "stage must be STAGE_PLAN, STAGE_SUBTASKS or STAGE_SYNTHESIS",
            field="stage",
        )
    resolved = changes.apply(source.config, source.paths)
    keeps_plan = stage != api.STAGE_PLAN
    if keeps_plan and (changes.values.subtasks or resolved.subtasks != source.config.subtasks):
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            "config.subtasks cannot change a plan that is kept: fork at STAGE_PLAN",
            field="config.subtasks",
        )
    history: list[pb.Event] = []
    if keeps_plan:
        history += _plan_events(source)
        reviews_again = stage == api.STAGE_SUBTASKS and (changes.values.review_plan or not source.is_reviewed)
        if resolved.review_plan and not resolved.subtasks and not reviews_again:
            approved = pb.PlanReviewed(decision=pb.DECISION_APPROVE)
            history.append(pb.Event(plan_reviewed=approved))
    if stage == api.STAGE_SYNTHESIS:
        if any(subtask.work.state not in SETTLED for subtask in _planned_subtasks(source)):
            raise _forbidden(source, "at STAGE_SYNTHESIS before all of its subtasks have ended")
        for subtask in _planned_subtasks(source):
            history += _subtask_events(subtask)
    return NewInstance(
        id=new_id,
        prompt=source.prompt,
        config=resolved,
        labels=source.labels,
        forked_from=source.id,
        files=source.files,
        predecessor=source.predecessor,
        history=history,
    )


def _planned_subtasks(source: Instance) -> Sequence[Subtask]:
    """Return the plan's subtasks: merges belong to the synthesis."""
    return [subtask for subtask in source.subtasks.values() if not subtask.merges]


def _plan_events(source: Instance) -> Sequence[pb.Event]:
    if not source.is_planned:
        raise _forbidden(source, "at this stage before its plan is complete; STAGE_PLAN is possible")
    planning = source.planning
    if not planning.attempt:
        return whole_plan(0, "", _planned_subtasks(source), source.summary, None)
    plan = whole_plan(1, planning.model, _planned_subtasks(source), source.summary, planning.usage)
    return [started(PLANNING, 1, planning.model), *plan]


def _subtask_events(subtask: Subtask) -> Sequence[pb.Event]:
    work = subtask.work
    cause = work.error or Failure("SUBTASK_FAILED", "no cause was recorded", subtask.id)
    if work.state not in (COMPLETED, FAILED):
        skipped = pb.SubtaskSkipped(subtask_id=subtask.id, error=failure_message(cause))
        return [pb.Event(subtask_skipped=skipped)]
    if work.state == COMPLETED:
        end = completed(subtask.key, 1, work.model, subtask.output, work.usage)
    else:
        part = Part(work.text) if work.text else None
        end = failed(subtask.key, 1, work.model, cause, work.usage, part=part)
    return [started(subtask.key, 1, work.model), end]


def _forbidden(source: Instance, why: str) -> StateForbidsError:
    return StateForbidsError(source.id, state=STATUS[source.state], action="fork", why=f" {why}")
