"""What clients see: the folded state written as the wire's resource, and each event, in a bounded size."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from orchestrator.core import instance as core
from orchestrator.core import references
from orchestrator.core.wire import (
    STATUS,
    failure_message,
    write_input_file,
    write_timestamp,
    write_usage,
)
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event

MAX_TEXT_BYTES: Final = 4 * 1024
"""The longest prompt, summary or final result that VIEW_BASIC shows whole."""

_MAX_PATHS_BYTES: Final = 64 * 1024
"""How much the paths may be that all subtasks name together for VIEW_BASIC to show them."""

_FIELD_BYTES: Final = 16
"""More than a message's place in another one takes, or an event's `omitted_bytes`."""


def instance(
    state: core.Instance, *, full: bool = False, waiting_reason: str = "", in_list: bool = False
) -> pb.Instance:
    """Return the resource, in VIEW_FULL or VIEW_BASIC; only who runs it knows what it waits for.

    `in_list`: without the workers of a catalogue that the configuration names, and without the input files.
    """
    prompt = state.prompt if full else _truncate(state.prompt, MAX_TEXT_BYTES)
    message = pb.Instance(
        id=state.id,
        state=state.state,
        prompt=prompt,
        prompt_is_cut=len(prompt) < len(state.prompt),
        config=_config(state, full=full, with_catalogue=not in_list),
        summary=state.summary if full else _truncate(state.summary, MAX_TEXT_BYTES),
        error=_failure(state.error),
        last_sequence=state.last_sequence,
        labels=dict(state.labels),
        forked_from=state.forked_from,
        continues=state.predecessor.id if state.predecessor else "",
        waiting_reason=state.pause_cause.message if state.pause_cause else waiting_reason,
    )
    if state.usage.model_calls:
        write_usage(message.usage, state.usage)
    if state.usage.model_calls or state.own_usage != state.usage:
        write_usage(message.own_usage, state.own_usage)
    if state.create_time_s:
        write_timestamp(message.create_time, state.create_time_s)
    if state.start_time_s:
        write_timestamp(message.start_time, state.start_time_s)
    if state.end_time_s:
        write_timestamp(message.end_time, state.end_time_s)
    if state.update_time_s:
        write_timestamp(message.update_time, state.update_time_s)
    for subtask in state.subtasks.values():
        _write_subtask(message.subtasks.add(), subtask, full=full)
    if state.files:
        if not full:
            _shorten_paths(message.subtasks)
        for file in () if in_list else state.files:
            write_input_file(message.files.add(), file, content=full)
    if state.state == core.COMPLETE and (full or _is_short(state.final_result)):
        message.final_result = state.final_result
    elif state.synthesis.text:
        message.is_partial = True
        text = references.shown(references.references(state), state.synthesis.text)
        if full or _is_short(text):
            message.final_result = text
    return message


def fit(instances: Sequence[pb.Instance], max_bytes: int) -> None:
    """Clear fields of instances in VIEW_BASIC until they fit into one answer.

    All lose the same fields. The rest is under 16 KiB an instance, as they are in a list.
    """
    if _size(instances) > max_bytes:
        for each in instances:
            each.ClearField("config")
    if _size(instances) > max_bytes:
        for each in instances:
            each.ClearField("labels")
            each.ClearField("subtasks")


def _size(instances: Sequence[pb.Instance]) -> int:
    return sum(each.ByteSize() + _FIELD_BYTES for each in instances)


def status(state: core.Instance) -> pb.InstanceStatus:
    """Return the status in the shape of Cloudflare Workflows."""
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


def _write_subtask(message: pb.Subtask, subtask: core.Subtask, *, full: bool) -> None:
    """Fill a subtask in its place: protobuf copies a message that is given to another's constructor."""
    work = subtask.work
    message.id = subtask.id
    message.title = subtask.title
    message.depends_on.extend(subtask.depends_on)
    message.worker = subtask.worker
    message.state = work.state
    message.attempt = work.attempt
    message.model = work.model
    message.merges = subtask.merges
    if subtask.files:
        message.files.extend(subtask.files)
    if full:
        message.instructions = subtask.instructions
        message.output = subtask.output or work.text
    message.is_partial = bool(work.text)
    if work.usage.model_calls:
        write_usage(message.usage, work.usage)
    if work.error:
        message.error.CopyFrom(failure_message(work.error))
    if work.start_time_s:
        write_timestamp(message.start_time, work.start_time_s)
    if work.end_time_s:
        write_timestamp(message.end_time, work.end_time_s)


def _failure(failure: core.Failure | None) -> pb.Failure | None:
    return None if failure is None else failure_message(failure)


def _config(state: core.Instance, *, full: bool, with_catalogue: bool) -> pb.InstanceConfig:
    config = state.config
    adds_workers = with_catalogue and bool(config.catalogue)
    is_short = not (config.HasField("instructions") or config.subtasks or config.workers)
    if not adds_workers and (full or is_short):
        return config
    message = pb.InstanceConfig()
    message.CopyFrom(config)
    if adds_workers:
        message.workers.extend(state.workers)
    if full:
        return message
    message.ClearField("instructions")
    for part in (*message.subtasks, *message.workers):
        part.ClearField("instructions")
    if state.files:
        _shorten_paths(message.subtasks)
    return message


def _shorten_paths(subtasks: Sequence[pb.Subtask]) -> None:
    """Leave out the files that subtasks name where those are too many for VIEW_BASIC."""
    if sum(len(path.encode()) for each in subtasks for path in each.files) > _MAX_PATHS_BYTES:
        for each in subtasks:
            each.ClearField("files")


def _is_short(text: str) -> bool:
    return len(text) * 4 <= MAX_TEXT_BYTES or len(text.encode()) <= MAX_TEXT_BYTES


def _truncate(text: str, max_bytes: int) -> str:
    """Truncate a text to a number of bytes, at a character boundary."""
    if len(text) * 4 <= max_bytes:
        return text
    encoded = text.encode()
    return text if len(encoded) <= max_bytes else encoded[:max_bytes].decode(errors="ignore")


class _Text(NamedTuple):
    """One text of a message."""

    size: int
    """Bytes."""
    truncate: Callable[[int], None]
    """Truncate it to a number of bytes."""


def excerpt(event: Event, max_bytes: int) -> Event:
    """Copy an event with its longest texts truncated to one length, such that it has at most so many bytes.

    `omitted_bytes` says how many are missing; an event that fits is copied as it is.
    """
    copy = Event()
    copy.CopyFrom(event)
    size = copy.ByteSize()
    if size <= max_bytes:
        return copy
    texts = sorted(_texts(copy), key=lambda text: text.size)
    # The budget is shared out from the shortest on: who needs less than a fair share leaves the rest.
    left = max(0, max_bytes - _FIELD_BYTES - size + sum(text.size for text in texts))
    for number, text in enumerate(texts):
        share = left // (len(texts) - number)
        if text.size > share:
            text.truncate(share)
        left -= min(text.size, share)
    # What a text's shorter length takes less in the encoding itself is not counted: it was no text.
    copy.omitted_bytes = sum(text.size for text in texts) - sum(text.size for text in _texts(copy))
    return copy


def _texts(message: Message) -> Iterator[_Text]:
    """Yield every text of a message and of all that it holds, but for maps, which are short."""
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type:
            for part in value if field.is_repeated else (value,):
                yield from _texts(part)
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield (_list if field.is_repeated else _text)(message, field.name, value)


def _text(message: Message, name: str, value: str) -> _Text:
    def truncate(size: int) -> None:
        setattr(message, name, _truncate(value, size))

    return _Text(len(value.encode()), truncate)


def _list(message: Message, name: str, values: Sequence[str]) -> _Text:
    """Take a list of texts as one, which loses whole entries from its end."""
    sizes = [len(value.encode()) for value in values]

    def truncate(size: int) -> None:
        kept = bisect_right([*accumulate(sizes)], size)
        del getattr(message, name)[kept:]

    return _Text(sum(sizes), truncate)
