"""What clients see has a bounded size, whatever an instance holds."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import History

from orchestrator.core import config, create, limits, plan, view
from orchestrator.core.instance import Failure, InputFile, Instance, Predecessor, Subtask, Work
from orchestrator.core.wire import write_input_file
from orchestrator.log.base import Page, encode_row
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1.orchestrator_pb2 import EventBatch

DEFAULT_MAX_BYTES = 4 * 1024 * 1024
WIDEST = "😀"
"""A character of four bytes."""
LONG = "x" * 5 * 1024 * 1024


def largest() -> Instance:
    """An instance whose every part is as large as the service lets it be."""
    names = [f"{number:02}".ljust(100, "n") for number in range(64)]
    paths = [f"{number:04}/".ljust(1024, "p") for number in range(1000)]
    named = paths[: 2 * 1024 // 64]
    own = [
        instance_pb2.Subtask(
            id=name,
            title=WIDEST * plan.MAX_TITLE_CHARACTERS,
            instructions="x" * limits.of(instance_pb2.Subtask, "instructions").max_bytes,
            depends_on=names[:number],
            worker=WIDEST * plan.MAX_WORKER_CHARACTERS,
            files=named,
        )
        for number, name in enumerate(names)
    ]
    catalogue = [
        instance_pb2.Worker(
            name=f"{number:02}" + WIDEST * 98,
            use=WIDEST * 1000,
            model=WIDEST * 200,
            instructions="x" * 8192,
        )
        for number in range(32)
    ]
    changes = instance_pb2.InstanceConfig(
        big_model=WIDEST * 200,
        small_model=WIDEST * 200,
        max_subtasks=64,
        instructions="x" * 32 * 1024,
        subtasks=own,
        workers=catalogue,
    )
    failed = Work(error=Failure("MODEL_REFUSED", WIDEST * 1000, names[-1]), model=WIDEST * 200)
    return Instance(
        id="i" * 100,
        state=instance_pb2.STATE_COMPLETE,
        prompt="x" * create.MAX_PROMPT_BYTES,
        config=config.resolve(changes, config.default("a/b", "c/d"), frozenset(paths)),
        workers=tuple(catalogue),
        labels={f"{number:02}".ljust(63, "k"): WIDEST * 256 for number in range(64)},
        summary=LONG,
        final_result=LONG,
        files=tuple(InputFile(path, "x" * 8192, "python", 8192, "0" * 64) for path in paths),
        predecessor=Predecessor("p" * 100, LONG, LONG),
        subtasks={
            each.id: Subtask(
                each.id,
                each.title,
                each.instructions,
                tuple(each.depends_on),
                each.worker,
                work=failed,
                output=LONG,
                files=tuple(named),
            )
            for each in own
        },
    )


def test_the_largest_instance_is_small_in_the_basic_view() -> None:
    shown = view.instance(largest())
    assert shown.ByteSize() < DEFAULT_MAX_BYTES * 3 / 4
    assert (shown.prompt, shown.prompt_is_cut) == ("x" * 4096, True)
    assert shown.summary == "x" * 4096
    assert shown.final_result == ""
    instructed = (shown.config, *shown.config.subtasks, *shown.config.workers, *shown.subtasks)
    assert {each.instructions for each in instructed} == {""}
    assert {subtask.output for subtask in shown.subtasks} == {""}
    assert {tuple(each.files) for each in (*shown.subtasks, *shown.config.subtasks)} == {()}


def test_the_basic_view_has_what_is_to_be_said_of_files_without_their_contents() -> None:
    instance = largest()
    shown = view.instance(instance)
    assert [file.path for file in shown.files] == [file.path for file in instance.files]
    [said] = {
        (file.content, file.language, file.size_bytes, file.sha256, file.source) for file in shown.files
    }
    assert said == ("", "python", 8192, "0" * 64, "input")
    assert shown.continues == "p" * 100


def test_in_a_list_nothing_is_said_of_files_and_an_instance_is_small() -> None:
    shown = view.instance(largest(), in_list=True)
    assert len(shown.files) == 0
    assert shown.continues == "p" * 100
    assert shown.ByteSize() < DEFAULT_MAX_BYTES / 2


def test_the_basic_view_says_which_files_a_subtask_has_where_they_are_few() -> None:
    instance = History().planned().instance
    few = tuple(f"{number}/".ljust(64, "p") for number in range(1000))
    subtasks = {name: each._replace(files=few) for name, each in instance.subtasks.items()}
    one = {"t1": subtasks["t1"]._replace(files=few)}
    files = (InputFile(few[0], "", "", 0, ""),)
    for in_list in (False, True):
        [shown] = view.instance(replace(instance, files=files, subtasks=one), in_list=in_list).subtasks
        assert tuple(shown.files) == few
        many = view.instance(replace(instance, files=files, subtasks=subtasks), in_list=in_list).subtasks
        assert {tuple(each.files) for each in many} == {()}


def test_the_basic_view_keeps_short_texts() -> None:
    instance = largest()
    shown = view.instance(instance)
    assert dict(shown.labels) == instance.labels
    assert [subtask.title for subtask in shown.config.subtasks] == [WIDEST * 200] * 64
    assert [worker.use for worker in shown.config.workers] == [WIDEST * 1000] * 32
    assert shown.config.retry == instance.config.retry
    history = History().planned().done("t1", "t2", "t3").completed()
    assert view.instance(history.instance).final_result == "the result"
    assert not view.instance(history.instance).prompt_is_cut


def test_the_full_view_has_everything() -> None:
    instance = largest()
    shown = view.instance(instance, full=True)
    assert (shown.prompt, shown.prompt_is_cut) == (instance.prompt, False)
    assert (shown.summary, shown.final_result) == (LONG, LONG)
    assert shown.config == instance.config
    assert {subtask.output for subtask in shown.subtasks} == {LONG}
    paths = tuple(file.path for file in instance.files[:32])
    assert {tuple(each.files) for each in (*shown.subtasks, *shown.config.subtasks)} == {paths}
    assert {file.content for file in shown.files} == {"x" * 8192}


def test_building_a_view_does_not_change_the_state() -> None:
    instance = largest()
    before = instance.config.SerializeToString(deterministic=True)
    view.instance(instance)
    assert instance.config.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("prompt", "shown", "is_cut"),
    [
        ("x" * 4096, "x" * 4096, False),
        ("x" * 4097, "x" * 4096, True),
        (WIDEST * 1024, WIDEST * 1024, False),
        (WIDEST * 1025, WIDEST * 1024, True),
        ("x" + WIDEST * 1024, "x" + WIDEST * 1023, True),
        ("xx" + "ü" * 2048, "xx" + "ü" * 2047, True),
    ],
)
def test_a_prompt_is_cut_between_two_characters(prompt: str, shown: str, *, is_cut: bool) -> None:
    message = view.instance(Instance(prompt=prompt))
    assert (message.prompt, message.prompt_is_cut) == (shown, is_cut)


def test_a_hundred_of_the_largest_instances_fit_into_one_answer() -> None:
    instance = largest()
    instances = [view.instance(instance, in_list=True) for _ in range(100)]
    view.fit(instances, DEFAULT_MAX_BYTES)
    assert sum(each.ByteSize() for each in instances) < DEFAULT_MAX_BYTES
    assert {each.id for each in instances} == {"i" * 100}
    assert {each.state for each in instances} == {instance_pb2.STATE_COMPLETE}


def test_a_batch_that_fits_is_left_unchanged() -> None:
    instances = [view.instance(History(f"i{number}").instance) for number in range(100)]
    before = list(instances)
    view.fit(instances, DEFAULT_MAX_BYTES)
    assert instances == before
    assert all(each.HasField("config") for each in instances)


def completed(text: str) -> event_pb2.Event:
    event = event_pb2.Event(instance_id="a", sequence=3)
    event.subtask_completed.subtask_id = "t1"
    event.subtask_completed.output = text
    return event


@settings(deadline=None)
@given(st.text(max_size=600), st.integers(min_value=60, max_value=700))
def test_an_event_is_cut_as_little_as_needed(text: str, max_bytes: int) -> None:
    event = completed(text)
    shown = view.excerpt(event, max_bytes)
    assert shown.ByteSize() <= max_bytes
    assert text.startswith(shown.subtask_completed.output)
    missing = len(text.encode()) - len(shown.subtask_completed.output.encode())
    assert shown.omitted_bytes == missing
    if event.ByteSize() <= max_bytes:
        assert shown == event
    else:
        assert missing <= event.ByteSize() - max_bytes + 32
    assert (shown.instance_id, shown.sequence, shown.subtask_completed.subtask_id) == ("a", 3, "t1")


def test_the_longest_of_many_texts_are_cut_to_one_length() -> None:
    event = event_pb2.Event(instance_id="a", sequence=1)
    created = event.instance_created
    created.prompt = "short"
    created.labels["kind"] = "kept"
    created.config.instructions = "y" * 500
    for name, size in (("one", 10_000), ("two", 20_000)):
        created.config.subtasks.append(instance_pb2.Subtask(id=name, instructions="z" * size))
    shown = view.excerpt(event, 9_000).instance_created
    assert (shown.prompt, shown.labels["kind"], shown.config.instructions) == ("short", "kept", "y" * 500)
    one, two = (len(subtask.instructions) for subtask in shown.config.subtasks)
    assert two - one in {0, 1}
    assert 4_000 < one < 4_250


def test_an_event_of_the_largest_instance_fits() -> None:
    event = event_pb2.Event(instance_id="a", sequence=1)
    instance = largest()
    event.instance_created.prompt = instance.prompt
    event.instance_created.config.CopyFrom(instance.config)
    event.instance_created.labels.update(instance.labels)
    for file in instance.files:
        write_input_file(event.instance_created.files.add(), file, content=True)
    event.instance_created.predecessor.final_result = LONG
    assert event.ByteSize() > DEFAULT_MAX_BYTES
    shown = view.excerpt(event, DEFAULT_MAX_BYTES)
    assert DEFAULT_MAX_BYTES - 300_000 < shown.ByteSize() <= DEFAULT_MAX_BYTES
    assert shown.omitted_bytes > 0


def test_files_keep_their_paths_where_their_contents_are_cut() -> None:
    event = event_pb2.Event(instance_id="a", sequence=1)
    paths = [f"{number:04}/".ljust(1024, "p") for number in range(1000)]
    for path in paths:
        file = InputFile(path, "x" * 8192, "python", 8192, "0" * 64)
        write_input_file(event.instance_created.files.add(), file, content=True)
    shown = view.excerpt(event, DEFAULT_MAX_BYTES)
    assert shown.ByteSize() <= DEFAULT_MAX_BYTES
    files = shown.instance_created.files
    assert [file.path for file in files] == paths
    assert {file.sha256 for file in files} == {"0" * 64}
    assert {len(file.content) for file in files} < {len("x" * size) for size in range(1024, 8192)}
    missing = sum(8192 - len(file.content) for file in files)
    assert shown.omitted_bytes == missing


@given(st.lists(st.text(max_size=20), max_size=20), st.integers(min_value=60, max_value=400))
def test_a_list_that_is_cut_loses_whole_entries_from_its_end(paths: list[str], max_bytes: int) -> None:
    event = event_pb2.Event(sequence=1)
    event.subtask_planned.subtask.files.extend(paths)
    shown = view.excerpt(event, max_bytes)
    kept = list(shown.subtask_planned.subtask.files)
    assert kept == paths[: len(kept)]
    assert shown.omitted_bytes == sum(len(path.encode()) for path in paths[len(kept) :])
    assert shown.ByteSize() <= max(max_bytes, 60 + 3 * len(paths))


@settings(deadline=None)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=20), st.integers(min_value=100, max_value=2000))
def test_the_parts_of_a_page_are_its_events_in_order_each_within_the_limit(
    texts: list[str], max_bytes: int
) -> None:
    events = [completed(text) for text in texts]
    for place, event in enumerate(events, 7):
        event.sequence = place
    page = Page(
        b"".join(map(encode_row, events)),
        range(7, 7 + len(events)),
        at_end=True,
        state=instance_pb2.STATE_RUNNING,
    )
    parts = list(page.split(max_bytes))
    assert all(0 < len(data) <= max_bytes for data, _ in parts)
    shown = [event for data, _ in parts for event in EventBatch.FromString(data).events]
    assert [event.sequence for event in shown] == [event.sequence for event in events]
    for event, copy in zip(events, shown, strict=True):
        assert copy == event or copy.omitted_bytes > 0
        assert len(encode_row(event)) <= max_bytes or copy.omitted_bytes > 0
    ends = [places[-1] for _, places in parts]
    assert ends == list(accumulate((len(places) for _, places in parts), initial=6))[1:]
    sizes = [len(data) for data, _ in parts]
    assert all(a + b > max_bytes for a, b in pairwise(sizes)), "as few as possible"
