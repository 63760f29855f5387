"""The page folds events by itself: to the same instances as the service."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from playwright.async_api import Browser, Page
from support.endpoint import Answer, Call, Endpoint, failing
from support.histories import NOW_S, History, histories_by_transition, part, resolved
from support.process import on_endpoint, process

from orchestrator.core import replies, view
from orchestrator.core.continuation import Part
from orchestrator.core.events import (
    call_failed,
    call_started,
    calls_interrupted,
    plan_calls_interrupted,
    plan_completed,
    subtasks_planned,
    work_completed,
)
from orchestrator.core.instance import PLANNING, SYNTHESIS, Instance, Subtask, Usage
from orchestrator.core.plan import Plan
from orchestrator.core.state import TRANSITIONS, fold
from orchestrator.core.wire import write_subtask
from orchestrator.errors import ModelError
from orchestrator.v1.event_pb2 import (
    DECISION_APPROVE,
    DECISION_REJECT,
    Event,
    InstanceErrored,
    InstancePaused,
    InstancePauseRequested,
    InstanceRestarted,
    InstanceResumed,
    PlanReviewed,
    SubtaskSkipped,
    SynthesisFailed,
)
from orchestrator.v1.instance_pb2 import STATE_QUEUED, Failure

FOLD_STREAM = """async (id) => {
    const { apply, emptyInstance, EVENT_NAMES } = await import('/-/ui/fold.js');
    const instance = emptyInstance(id);
    await new Promise((done) => {
        const source = new EventSource(`/${id}/events`);
        for (const name of EVENT_NAMES) {
            source.addEventListener(name, (message) => apply(instance, JSON.parse(message.data)));
        }
        source.addEventListener('end', () => { source.close(); done(); });
    });
    const { planning, synthesis, ...shown } = instance;
    return { ...shown, subtasks: [...instance.subtasks.values()].map(({ attempts, ...each }) => each) };
}"""
FOLD_EVENTS = """async ([source, events]) => {
    const { apply, emptyInstance } = await import(`data:text/javascript;base64,${source}`);
    const instance = emptyInstance('a');
    for (const event of events) apply(instance, event);
    const { planning, synthesis, ...shown } = instance;
    return { ...shown, subtasks: [...instance.subtasks.values()].map(({ attempts, ...each }) => each) };
}"""
COMPARED_FIELDS = [
    "id",
    "state",
    "prompt",
    "summary",
    "finalResult",
    "isPartial",
    "forkedFrom",
    "continues",
    "labels",
    "config",
]
NO_USAGE = {"inputTokens": 0, "outputTokens": 0, "modelCalls": 0, "costUsd": 0}
COMPARED_SUBTASK_FIELDS = [
    "id",
    "title",
    "instructions",
    "dependsOn",
    "files",
    "attempt",
    "model",
    "output",
    "isPartial",
]


def to_ms(time: str | None) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000) if time else 0


async def wait_until_planned(rest: httpx.AsyncClient, instance_id: str, *, times: int) -> None:
    """Wait until the instance has been planned `times` times."""
    async with rest.stream("GET", f"/{instance_id}/events") as events:
        async for line in events.aiter_lines():
            times -= line == "event: plan_completed"
            if not times:
                return


async def test_the_page_folds_the_streams_of_a_service_to_its_instances(
    browser: Browser, tmp_path: Path
) -> None:
    failing_subtasks = {"well": "", "badly": "t2", "retried": "t2", "restarted": ""}

    def script(call: Call) -> Answer:
        failing_id = next(id_ for name, id_ in failing_subtasks.items() if f"it {name}" in call.prompt_text)
        return failing(400, "no") if failing_id and call.subtask_id == failing_id else None

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False, timeout=60) as rest,
    ):
        for name in failing_subtasks:
            config = {"reviewPlan": name == "well", "instructions": "mind it"}
            await rest.post("/", json={"prompt": f"do it {name}", "id": name, "config": config})
        await wait_until_planned(rest, "well", times=1)
        await rest.post("/well:review", json={"decision": "DECISION_REJECT", "feedback": "less"})
        await wait_until_planned(rest, "well", times=2)
        await rest.post("/well:review", json={"decision": "DECISION_APPROVE"})
        for name in failing_subtasks:
            await rest.get(f"/{name}:wait", params={"timeout": "30s"})
        failing_subtasks["retried"] = ""
        await rest.post("/retried:retry", json={"config": {"smallModel": "openai/other"}})
        await rest.post("/restarted:restart", json={})
        await rest.post("/well:fork", json={"newId": "forked", "stage": "STAGE_SYNTHESIS"})
        failing_subtasks["forked"] = ""
        page = await browser.new_page()
        await page.goto(f"http://{service.rest_address}/-/ui/")
        for name in failing_subtasks:
            await rest.get(f"/{name}:wait", params={"timeout": "30s"})
            answer = await rest.get(f"/{name}", params={"view": "VIEW_FULL"})
            assert_same(await page.evaluate(FOLD_STREAM, name), answer.json()["instance"])
        await page.close()


ERRORED = Event(instance_errored=InstanceErrored(error=Failure(reason="BUDGET_EXCEEDED")))
RESTARTED = Event(instance_restarted=InstanceRestarted(config=resolved()))
OVERLOADED = ModelError("OVERLOADED", "status 503", retryable=True)
A, B, C = part("a"), part("b", "a"), part("c")


def partly_planned(history: History, *subtasks: Subtask) -> History:
    return history.then(*subtasks_planned(history.instance, subtasks, "how"))


def replanned() -> History:
    """A planning that failed with two subtasks completed and one running; its next attempt is started."""
    history = History()
    partly_planned(history.then(call_started(history.instance, PLANNING)), A, B, C).done("a", "b").started(
        "c"
    )
    return planned_again(history)


def planned_again(history: History) -> History:
    """Fail a planning that is under way, and start its next attempt."""
    history.then(*plan_calls_interrupted(history.instance))
    error = ModelError("PLAN_INVALID", "no", retryable=True)
    history.then(call_failed(history.instance, PLANNING, error, Usage(1, 2, 1), now_s=NOW_S, jitter=0))
    return history.then(call_started(history.instance, PLANNING))


def terminated() -> History:
    return History().planned(A, B, C).done("a", "b").started("c").terminated()


def reviewed(history: History, *edited: Subtask) -> History:
    """Reject the plan, or approve it as edited."""
    review = PlanReviewed(decision=DECISION_APPROVE if edited else DECISION_REJECT)
    for subtask in edited:
        write_subtask(review.subtasks.add(), subtask)
    return history.then(Event(plan_reviewed=review))


def interrupted(history: History) -> History:
    return history.then(*calls_interrupted(history.instance, NOW_S, by_crash=True))


def paused(history: History) -> History:
    return history.then(
        Event(instance_pause_requested=InstancePauseRequested()), Event(instance_paused=InstancePaused())
    )


def continued(history: History) -> History:
    """Every kind of work is cut off once, and begun anew once."""
    history.then(call_started(history.instance, PLANNING)).continued(PLANNING, '{"subtasks": ')
    history.then(*plan_completed(history.instance, Plan("how", (A, C)), Usage(1, 2, 1)))
    history.started("a").continued(A.key, "half ").continued(A.key, "anew", replaces=True)
    history.then(work_completed(history.instance, A.key, "anew and whole", Usage(1, 2, 1)))
    history.started("c").continued(C.key, "half ")
    history.then(call_failed(history.instance, C.key, OVERLOADED, Usage(), now_s=NOW_S, jitter=0))
    history.started("c").then(work_completed(history.instance, C.key, "half and whole", Usage(1, 2, 1)))
    history.then(call_started(history.instance, SYNTHESIS)).continued(SYNTHESIS, "half ")
    return interrupted(history)


def failed_for_good(history: History) -> History:
    """The synthesis is cut off for the last time."""
    history.then(call_started(history.instance, SYNTHESIS))
    error = replies.parts_used_up(1, "")
    part = Part("and more")
    history.then(call_failed(history.instance, SYNTHESIS, error, Usage(), now_s=NOW_S, jitter=0, part=part))
    return history.then(ERRORED)


def retried_synthesis(history: History) -> History:
    history.retried()
    return history.then(call_started(history.instance, SYNTHESIS))


def synthesis_failed(history: History) -> History:
    history.then(call_started(history.instance, SYNTHESIS))
    error = Failure(reason="MODEL_FAILED", message="no")
    return history.then(Event(synthesis_failed=SynthesisFailed(attempt=1, error=error))).then(ERRORED)


def given_files() -> History:
    """Build an instance with files that goes on from another one, whose plan names them differently anew."""
    history = History()
    first = history.events[0]
    for path in ("a.py", "b.py"):
        first.instance_created.files.add(path=path, content="x", size_bytes=1, sha256="0", source="input")
    first.instance_created.predecessor.id = "before"
    history.instance = fold([first])
    both = A._replace(files=("a.py", "b.py"))
    partly_planned(history.then(call_started(history.instance, PLANNING)), both, C).done("a", "c")
    return partly_planned(planned_again(history), both._replace(files=("a.py",)), C)


HISTORIES: Mapping[str, Callable[[], History]] = {
    "terminated": terminated,
    "errored": lambda: History().planned(A, C).done("a").started("c").then(ERRORED),
    "terminated while planning": lambda: replanned().terminated(),
    "retried": lambda: terminated().retried().done("c").completed(),
    "interrupted": lambda: interrupted(History().planned(A, C).started("a")).done("a", "c").completed(),
    "planned again": lambda: partly_planned(replanned(), A, C),
    "planned again in another order": lambda: partly_planned(replanned(), B, A),
    "planned again otherwise": lambda: partly_planned(
        partly_planned(replanned(), A._replace(title="More")).done("a"), B
    ),
    "given files": given_files,
    "given files and restarted": lambda: given_files().terminated().then(RESTARTED),
    "retried in review": lambda: terminated().retried(review_plan=True),
    "paused": lambda: paused(History().planned(A)).then(Event(instance_resumed=InstanceResumed())).done("a"),
    "paused in review": lambda: paused(History(review_plan=True).planned(A)).then(
        Event(instance_resumed=InstanceResumed())
    ),
    "skipped": lambda: History().planned(A, B).then(Event(subtask_skipped=SubtaskSkipped(subtask_id="b"))),
    "synthesis failed": lambda: synthesis_failed(History().planned(A).done("a")),
    "retried before it was planned": lambda: replanned().terminated().retried(),
    "restarted": lambda: terminated().then(RESTARTED).planned(A).started("a"),
    "continued": lambda: continued(History()).completed(),
    "continued and failed": lambda: failed_for_good(continued(History())),
    "continued and retried": lambda: retried_synthesis(failed_for_good(continued(History()))),
    "rejected": lambda: reviewed(terminated().retried(review_plan=True)).planned(A, C),
    "edited": lambda: reviewed(terminated().retried(review_plan=True), A, B._replace(title="More"), C),
}
"""Lives in which work is interrupted, discarded or reused."""


def test_every_kind_of_event_is_in_a_life() -> None:
    kinds = {event.WhichOneof("payload") for make in HISTORIES.values() for event in make().events}
    assert kinds == {field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}


async def assert_folds_as_the_core_does(page: Page, instance: Instance, events: Sequence[Event]) -> None:
    source = b64encode(resources.files("orchestrator").joinpath("web/fold.js").read_bytes()).decode()
    shown = await page.evaluate(FOLD_EVENTS, [source, [MessageToDict(event) for event in events]])
    resource = view.instance(instance, full=True)
    expected = MessageToDict(resource, always_print_fields_with_no_presence=True)
    expected["config"] = {"subtasks": [], "workers": [], "catalogue": "", **MessageToDict(resource.config)}
    # The resource has it only once it is complete.
    expected["finalResult"] = instance.final_result or instance.synthesis.text
    assert_same(shown, expected)


@pytest.mark.parametrize("name", HISTORIES)
async def test_the_page_folds_a_life_as_the_core_does(browser: Browser, name: str) -> None:
    history = HISTORIES[name]()
    page = await browser.new_page()
    await assert_folds_as_the_core_does(page, history.instance, history.events)
    await page.close()


EXPLORED = histories_by_transition()
CALL_ENDS = {
    "planning_continued",
    "subtask_continued",
    "synthesis_continued",
    "planning_failed",
    "subtask_failed",
    "subtask_completed",
    "synthesis_failed",
    "synthesis_completed",
}
POSSIBLE = {
    (source, kind, target)
    for source, transitions in TRANSITIONS.items()
    for kind, targets in transitions.items()
    for target in targets
    if not (source == STATE_QUEUED and kind in CALL_ENDS)  # a queued instance has no open call that could end
}


def test_there_is_a_life_for_every_transition_that_is_possible() -> None:
    assert set(EXPLORED) == POSSIBLE


async def test_the_page_folds_every_transition_as_the_core_does(browser: Browser) -> None:
    page = await browser.new_page()
    for events in EXPLORED.values():
        await assert_folds_as_the_core_does(page, fold(events), events)
    await page.close()


async def test_a_decision_unknown_to_the_page_changes_nothing(browser: Browser) -> None:
    source = b64encode(resources.files("orchestrator").joinpath("web/fold.js").read_bytes()).decode()
    history = History(review_plan=True).planned(A)
    sequence = str(history.instance.last_sequence + 1)
    page = await browser.new_page()
    for decision in ({}, {"decision": 17}):
        unknown = {"instanceId": "a", "sequence": sequence, "planReviewed": decision}
        events = [*map(MessageToDict, history.events), unknown]
        shown = await page.evaluate(FOLD_EVENTS, [source, events])
        assert (shown["state"], shown["lastSequence"]) == ("STATE_WAITING", int(sequence))
    await page.close()


def assert_same(shown: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("subtasks", "workers", "catalogue"):
        expected["config"].pop(name)  # the transcoder prints an empty list, an event leaves it out
    assert {name: shown[name] for name in COMPARED_FIELDS} == {
        name: expected[name] for name in COMPARED_FIELDS
    }
    assert [file["path"] for file in shown["files"]] == [file["path"] for file in expected["files"]]
    assert not any("content" in file for file in shown["files"])
    for name in ("createTime", "startTime", "endTime", "updateTime"):
        assert abs(shown[name] - to_ms(expected.get(name))) <= 1, name
    assert shown["lastSequence"] == int(expected["lastSequence"])
    for name in ("usage", "ownUsage"):
        usage = {**NO_USAGE, **expected.get(name, {})}  # a message that is not set is left out
        tokens = {kind: int(usage[kind]) for kind in ("inputTokens", "outputTokens")}
        assert shown[name] == {**usage, **tokens}, name
    assert (shown["error"] or {}).get("reason") == (expected.get("error") or {}).get("reason")
    for shown_subtask, expected_subtask in zip(shown["subtasks"], expected["subtasks"], strict=True):
        assert {name: shown_subtask[name] for name in COMPARED_SUBTASK_FIELDS} == {
            name: expected_subtask[name] for name in COMPARED_SUBTASK_FIELDS
        }
        assert f"SUBTASK_STATE_{shown_subtask['state']}" == expected_subtask["state"]
