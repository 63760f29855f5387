"""What a reply means for the work that it is of: decided in one place, whichever provider it comes from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.histories import NOW_S, History, part

from orchestrator.core.continuation import Part, token_limit
from orchestrator.core.events import call_failed, call_started, work_continued
from orchestrator.core.instance import PENDING, PLANNING, SYNTHESIS, Instance, Usage, WorkKey
from orchestrator.core.plan import Plan
from orchestrator.core.prompts import FULL, Prompt
from orchestrator.core.replies import Finish, ModelReply, find_failure, read
from orchestrator.errors import ModelError
from orchestrator.models.scripted import plan_text

PROMPT = Prompt("work", ())
MAY_BE_CUT = Prompt("work", (), may_be_cut=True)
T1 = WorkKey("subtask", "t1")
USAGE = Usage(3, 4, 1)
REPLY = ModelReply("text", 3, 4, response_id="id-1", token_limit=500, endpoint="openai (127.0.0.1:1)")


@pytest.mark.parametrize(
    ("reply", "reason", "retryable", "message"),
    [
        (
            REPLY._replace(finish=Finish.CUT),
            "OUTPUT_TRUNCATED",
            True,
            "m was cut off at 500 tokens: allow more max_output_tokens, or choose a model that takes more",
        ),
        (
            REPLY._replace(finish=Finish.CUT, text="", token_limit=0),
            "OUTPUT_TRUNCATED",
            True,
            "m was cut off: allow more max_output_tokens, or choose a model that takes more",
        ),
        (
            REPLY._replace(finish=Finish.FILTERED, explanation="It said: no"),
            "MODEL_REFUSED",
            False,
            "m refused to answer. It said: no",
        ),
        (
            REPLY._replace(finish=Finish.FILTERED),
            "MODEL_REFUSED",
            False,
            "m refused to answer (content filter)",
        ),
        (
            REPLY._replace(finish=Finish.FAILED, explanation="It said: error"),
            "OUTPUT_INCOMPLETE",
            True,
            "m stopped before its answer was complete. It said: error",
        ),
        (
            REPLY._replace(text=" \n"),
            "OUTPUT_INVALID",
            True,
            "openai (127.0.0.1:1) sent an empty answer",
        ),
        (
            REPLY._replace(text="", has_thoughts=True),
            "OUTPUT_INVALID",
            True,
            "openai (127.0.0.1:1) sent nothing but thoughts",
        ),
    ],
)
def test_a_reply_that_is_not_an_answer_fails_with_the_reason(
    reply: ModelReply, reason: str, retryable: bool, message: str
) -> None:
    failure = find_failure(reply, PROMPT, "m")
    assert failure is not None
    assert (failure.reason, failure.retryable, str(failure)) == (reason, retryable, message)
    assert (failure.input_tokens, failure.output_tokens, failure.response_id) == (3, 4, "id-1")


@pytest.mark.parametrize("text", ["", "\n", "[complete]"])
def test_a_reply_that_adds_nothing_to_recorded_text_completes_it(text: str) -> None:
    history = History().planned(part("t1")).started("t1")
    history.then(work_continued(history.instance, T1, Part("All of it."), USAGE))
    whole = read(FULL, history.instance, T1, PROMPT, REPLY._replace(text=text), "m")
    assert str(whole).strip() == "All of it."


@given(
    st.sampled_from(Finish),
    st.sampled_from(["", " ", "text"]),
    st.sampled_from([PROMPT, MAY_BE_CUT]),
    st.booleans(),
)
def test_only_text_that_is_complete_or_may_be_cut_is_an_answer(
    finish: Finish, text: str, prompt: Prompt, has_thoughts: bool
) -> None:
    reply = ModelReply(text, finish=finish, has_thoughts=has_thoughts)
    is_whole = finish is Finish.NORMAL or (finish is Finish.CUT and prompt.may_be_cut)
    assert (find_failure(reply, prompt, "m") is None) == (is_whole and text == "text")


def test_a_planners_reply_is_parsed_as_a_plan_and_other_replies_are_text() -> None:
    instance = History().planned(part("t1")).done("t1").instance
    plan = read(FULL, instance, PLANNING, PROMPT, ModelReply(plan_text(2)), "m")
    assert isinstance(plan, Plan)
    assert [subtask.id for subtask in plan.subtasks] == ["t1", "t2"]
    assert read(FULL, instance, T1, PROMPT, ModelReply(" text\n"), "m") == " text\n"
    assert read(FULL, instance, SYNTHESIS, PROMPT, ModelReply(" text\n"), "m") == "text"


def test_an_invalid_plan_fails_with_its_mend_and_its_usage() -> None:
    with pytest.raises(ModelError, match="it holds no JSON object") as caught:
        read(FULL, History().instance, PLANNING, PROMPT, REPLY, "m")
    assert (caught.value.reason, caught.value.retryable) == ("PLAN_INVALID", True)
    assert (caught.value.output_tokens, caught.value.response_id) == (4, "id-1")


@pytest.mark.parametrize("key", [PLANNING, T1, SYNTHESIS])
@pytest.mark.parametrize("finish", [Finish.FILTERED, Finish.FAILED])
def test_half_an_answer_completes_no_work(key: WorkKey, finish: Finish) -> None:
    instance = History().planned(part("t1")).done("t1").instance
    with pytest.raises(ModelError):
        read(FULL, instance, key, PROMPT, ModelReply(plan_text(2), finish=finish), "m")


@pytest.mark.parametrize("key", [PLANNING, T1, SYNTHESIS])
def test_an_answer_that_is_cut_off_is_a_part(key: WorkKey) -> None:
    instance = History().planned(part("t1")).instance
    reply = ModelReply("Half an answ", finish=Finish.CUT)
    assert read(FULL, instance, key, PROMPT, reply, "m") == Part("Half an answ")


def test_a_part_is_joined_to_what_is_recorded_of_its_answer() -> None:
    history = History().planned(part("t1")).started("t1")
    history.then(work_continued(history.instance, T1, Part("The first half, "), USAGE))
    whole = read(FULL, history.instance, T1, PROMPT, ModelReply("The first half, and the second."), "m")
    assert whole == "The first half, and the second."
    more = read(FULL, history.instance, T1, PROMPT, ModelReply("and the", finish=Finish.CUT), "m")
    assert more == Part("and the")


def test_a_plan_that_is_only_read_as_a_whole_is_asked_for_again_with_twice_the_limit() -> None:
    history = History(review_plan=True)
    history.then(call_started(history.instance, PLANNING))
    error = failure_of_reading(history.instance, PLANNING, ModelReply('{"sub', finish=Finish.CUT))
    assert (error.reason, error.retryable) == ("OUTPUT_TRUNCATED", True)
    history.then(call_failed(history.instance, PLANNING, error, USAGE, now_s=NOW_S, jitter=0))
    assert history.instance.planning.retry_time_s == NOW_S
    assert (
        token_limit(history.instance, history.instance.planning)
        == 2 * history.instance.config.max_output_tokens
    )


def test_thinking_that_used_up_the_limit_is_given_twice_as_much_once() -> None:
    history = History().planned(part("t1"))
    most = history.instance.config.max_output_tokens
    for limit, is_retried in ((most, True), (2 * most, False)):
        history.started("t1")
        assert token_limit(history.instance, history.instance.work(T1)) == limit
        reply = ModelReply("", finish=Finish.CUT, token_limit=limit, has_thoughts=True)
        error = failure_of_reading(history.instance, T1, reply)
        assert error.reason == "OUTPUT_TRUNCATED"
        assert f"m used up its limit of {limit} tokens for thinking and wrote no answer" in str(error)
        history.then(call_failed(history.instance, T1, error, USAGE, now_s=NOW_S, jitter=0))
        assert (history.instance.work(T1).state == PENDING) == is_retried


def test_a_limit_that_the_endpoint_does_not_raise_is_not_asked_for_again() -> None:
    history = History().planned(part("t1")).started("t1")
    reply = ModelReply("", finish=Finish.CUT, token_limit=history.instance.config.max_output_tokens - 1)
    assert not failure_of_reading(history.instance, T1, reply).retryable


def test_a_model_that_only_repeats_itself_is_not_asked_again() -> None:
    history = History().planned(part("t1")).started("t1")
    text = "A first half that is long enough to be recognised when it is written again, word for word."
    history.then(work_continued(history.instance, T1, Part(text), USAGE))
    error = failure_of_reading(history.instance, T1, ModelReply(text, finish=Finish.CUT))
    assert (error.reason, error.retryable) == ("OUTPUT_TRUNCATED", False)


def failure_of_reading(instance: Instance, key: WorkKey, reply: ModelReply) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read(FULL, instance, key, PROMPT, reply, "m")
    return caught.value
