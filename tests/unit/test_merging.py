from hypothesis import given
from hypothesis import strategies as st
from support.histories import History, at, part

from orchestrator.core import merging
from orchestrator.core.commands import CallModel, Record, model_for
from orchestrator.core.decider import decide
from orchestrator.core.events import work_completed
from orchestrator.core.instance import SYNTHESIS, Usage, WorkKey
from orchestrator.core.prompts import FULL
from orchestrator.core.view import status

LATER_S = 2e9


def with_outputs(*lengths: int, **config: object) -> History:
    history = History(**config).planned(*(part(f"t{number}") for number in range(len(lengths))))
    for number, length in enumerate(lengths):
        history.started(f"t{number}")
        history.then(
            work_completed(
                history.instance,
                WorkKey("subtask", f"t{number}"),
                chr(97 + number % 26) * length,
                Usage(1, 1, 1),
            )
        )
    return history


def step(history: History) -> list[object]:
    """What is to be done next; what follows without a call is done."""
    while True:
        commands = decide(history.instance, at(LATER_S))
        records = [command for command in commands if isinstance(command, Record)]
        if not records:
            return list(commands)
        for record in records:
            history.then(*record.events)


def test_outputs_that_fit_are_not_merged() -> None:
    assert step(with_outputs(1000, 1000, max_input_characters=2000)) == [CallModel(SYNTHESIS)]


def test_outputs_that_do_not_fit_are_merged_in_parallel_by_the_big_model() -> None:
    history = with_outputs(1000, 900, 800, 1200, max_input_characters=2000)
    assert step(history) == [
        CallModel(WorkKey("subtask", "merge-1")),
        CallModel(WorkKey("subtask", "merge-2")),
    ]
    assert history.instance.subtasks["merge-1"].depends_on == ("t0", "t1")
    assert model_for(history.instance, WorkKey("subtask", "merge-1")) == "scripted/big"
    for name in ("merge-1", "merge-2"):
        history.started(name)
        history.then(work_completed(history.instance, WorkKey("subtask", name), f"of {name}", Usage(1, 1, 1)))
    assert step(history) == [CallModel(SYNTHESIS)]
    prompt = FULL.synthesize(history.instance).messages[-1].content
    assert "of merge-1" in prompt
    assert "a" * 100 not in prompt
    assert history.instance == history.refolded()


def test_merges_are_not_part_of_the_plan_shown_to_clients() -> None:
    history = with_outputs(1500, 1500, max_input_characters=2000)
    step(history)
    history.started("merge-1").then(
        work_completed(history.instance, WorkKey("subtask", "merge-1"), "both", Usage())
    )
    history.completed()
    assert len(status(history.instance).output.orchestrator_tasks) == 2


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=20), st.integers(0, 9000))
def test_a_few_rounds_of_merging_end_in_a_synthesis_that_fits(lengths: list[int], merged: int) -> None:
    history = with_outputs(*lengths, max_input_characters=2000, max_subtasks=64, max_parallel_subtasks=64)
    rounds = 0
    while (commands := step(history)) != [CallModel(SYNTHESIS)]:
        rounds += 1
        for command in commands:
            assert isinstance(command, CallModel)
            subtask = history.instance.subtasks[command.work.subtask_id]
            assert subtask.merges
            assert len(subtask.depends_on) > 1
            assert len(FULL.work(history.instance, subtask).messages[-1].content) < 2000 + 500 * len(lengths)
            history.started(subtask.id)
            history.then(
                work_completed(history.instance, WorkKey("subtask", subtask.id), "m" * merged, Usage())
            )
    assert rounds <= 5
    prompt = FULL.synthesize(history.instance).messages[-1].content
    assert len(prompt) < 2000 + 500 * len(lengths)


def test_a_merge_prompt_contains_its_outputs_and_asks_to_keep_the_code() -> None:
    history = with_outputs(1500, 1500, max_input_characters=2000)
    step(history)
    prompt = FULL.work(history.instance, history.instance.subtasks["merge-1"])
    assert prompt.role == "synthesis"
    assert "Keep all code whole" in prompt.messages[0].content
    assert "characters were cut here" in prompt.messages[1].content


def test_each_rejection_as_too_long_halves_the_room() -> None:
    history = with_outputs(100_000, 100_000, max_input_characters=1_000_000)
    instance = history.instance
    limits = []
    for too_long in range(12):
        work = type(instance.synthesis)(too_long=too_long)
        limits.append(merging.limit(instance, work))
    assert limits[:3] == [1_000_000, 500_000, 250_000]
    assert limits[-1] == 2000


def test_a_name_used_by_the_plan_is_not_reused() -> None:
    history = History(max_input_characters=2000).planned(part("merge-1"), part("b"))
    for name in ("merge-1", "b"):
        history.started(name)
        history.then(work_completed(history.instance, WorkKey("subtask", name), "x" * 1500, Usage()))
    assert step(history) == [CallModel(WorkKey("subtask", "merge-2"))]
