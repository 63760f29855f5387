"""An instance as clients see it: the folded state, written as the wire's resource."""

from orchestrator.core import state as core
from orchestrator.core.wire import STATUS, failure_message, timestamp, usage_message
from orchestrator.v1 import instance_pb2 as pb


def instance(state: core.Instance, *, full: bool = False) -> pb.Instance:
    """The resource; `full` adds the subtasks' instructions and outputs."""
    message = pb.Instance(
        id=state.id,
        state=state.state,
        prompt=state.prompt,
        config=state.config,
        summary=state.summary,
        subtasks=[_subtask(subtask, full=full) for subtask in state.subtasks.values()],
        usage=_usage(state.usage),
        error=_failure(state.error),
        create_time=timestamp(state.create_time_s),
        start_time=timestamp(state.start_time_s),
        end_time=timestamp(state.end_time_s),
        update_time=timestamp(state.update_time_s),
        last_sequence=state.last_sequence,
        labels=dict(state.labels),
        forked_from=state.forked_from,
        own_usage=_usage(state.own_usage),
    )
    if state.state == core.COMPLETE:
        message.final_result = state.final_result
    return message


def status(state: core.Instance) -> pb.InstanceStatus:
    """The status in the shape of Cloudflare Workflows."""
    message = pb.InstanceStatus(status=STATUS[state.state])
    if state.error:
        message.error.name = state.error.reason
        message.error.message = state.error.message
    if state.state == core.COMPLETE:
        subtasks = [subtask for subtask in state.subtasks.values() if not subtask.merges]
        message.output.orchestrator_tasks.extend(subtask.title for subtask in subtasks)
        message.output.worker_responses.extend(subtask.output for subtask in subtasks)
        message.output.final_result = state.final_result
    return message


def _subtask(subtask: core.Subtask, *, full: bool) -> pb.Subtask:
    work = subtask.work
    return pb.Subtask(
        id=subtask.id,
        title=subtask.title,
        instructions=subtask.instructions if full else "",
        depends_on=subtask.depends_on,
        worker=subtask.worker,
        state=work.state,
        attempt=work.attempt,
        model=work.model,
        output=subtask.output if full else "",
        usage=_usage(work.usage),
        error=_failure(work.error),
        start_time=timestamp(work.start_time_s),
        end_time=timestamp(work.end_time_s),
        merges=subtask.merges,
    )


def _usage(usage: core.Usage) -> pb.Usage | None:
    if not usage.model_calls:
        return None
    return usage_message(usage)


def _failure(failure: core.Failure | None) -> pb.Failure | None:
    return None if failure is None else failure_message(failure)
