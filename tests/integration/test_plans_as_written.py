"""Plans as models write them, through a real endpoint: a clear one costs one call, a fault is reported."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.endpoint import Answer, Call, Endpoint, fenced
from support.histories import resolved
from support.logs import ended

from orchestrator.core.create import NewInstance
from orchestrator.core.instance import Instance
from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import Models
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.v1 import instance_pb2 as pb

QUICK = pb.RetryPolicy(max_attempts=6)
QUICK.initial_delay.nanos = 1_000_000

PARTS = [{"id": "t1", "title": "One", "instructions": "Do one"}, {"title": "Two", "depends_on": "t1"}]
PLAN = json.dumps({"summary": "how", "subtasks": PARTS})


@asynccontextmanager
async def running(path: Path, endpoint: Endpoint) -> AsyncIterator[tuple[LocalEngine, SqliteEventLog]]:
    log = await SqliteEventLog.open(path)
    provider = ChatCompletions("openai", endpoint.url, api_key="k")
    try:
        async with LocalEngine.running(log, Models({"openai": provider})) as engine:
            yield engine, log
    finally:
        await provider.aclose()
        await log.aclose()


async def planned_by(path: Path, endpoint: Endpoint) -> Instance:
    """The instance at its end."""
    config = resolved(big_model="openai/big", small_model="openai/small", retry=QUICK)
    async with running(path, endpoint) as (engine, log):
        await engine.create(NewInstance("a", "Build it", config))
        return await ended(log, "a", 30)


@pytest.mark.parametrize(
    "text",
    [
        PLAN.replace("}]", "},]"),
        PLAN.replace('"subtasks"', '// all of them\n"subtasks"'),
        PLAN.replace("Do one", "Do\n\tone"),
        PLAN.replace('"', "'"),
        PLAN[:-1],
        f'As {{"a": 1}} is not one, this is the plan:\n{fenced(PLAN)}\nGood luck!',
        json.dumps(PLAN),
        json.dumps(PARTS),
        json.dumps({"plan": {"steps": PARTS}}),
    ],
    ids=lambda text: text[:24],
)
async def test_a_plan_with_one_possible_meaning_costs_one_call(text: str, tmp_path: Path) -> None:
    async with Endpoint(lambda call: text if call.role == "planning" else None) as endpoint:
        instance = await planned_by(tmp_path / "log.db", endpoint)
    assert instance.state == pb.STATE_COMPLETE, instance.error
    assert [(each.title, each.depends_on) for each in instance.subtasks.values()] == [
        ("One", ()),
        ("Two", ("t1",)),
    ]
    assert endpoint.count("planning") == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (PLAN[:-30], "the text ends"),
        (PLAN.replace("}]", "}, ...]"), "dots must not stand for what is left out"),
        (PLAN.replace('"t1"}]', '"t9"}]'), "subtask 't2' depends on 't9', which is not in the plan"),
        (PLAN.replace('"title": "Two", ', ""), "subtask 't2' has no instructions"),
        ('{"answer": 42}', "no \"subtasks\" list; the keys of its JSON object: 'answer'"),
    ],
    ids=["cut", "dots", "unknown", "without instructions", "other"],
)
async def test_the_planner_gets_the_actual_fault_of_its_plan(text: str, cause: str, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return text if call.role == "planning" and call.attempt == 1 else None

    async with Endpoint(script) as endpoint:
        instance = await planned_by(tmp_path / "log.db", endpoint)
    assert instance.state == pb.STATE_COMPLETE
    first, second = (call for call in endpoint.calls if call.role == "planning")
    assert cause not in first.prompt_text
    assert cause in second.prompt_text


async def test_a_planner_without_a_valid_answer_starts_few_workers_and_every_call_counts(
    tmp_path: Path,
) -> None:
    text = PLAN.replace('"t1"}]', '"t9"}]')
    async with Endpoint(lambda call: text if call.role == "planning" else None) as endpoint:
        instance = await planned_by(tmp_path / "log.db", endpoint)
    assert instance.error
    assert (instance.error.reason, endpoint.count("planning")) == ("PLAN_INVALID", 6)
    assert "depends on 't9', which is not in the plan" in instance.error.message
    assert len(endpoint.calls) <= instance.usage.model_calls <= 6 + 2  # one may be cut off before it is sent
    assert instance.usage.input_tokens >= 6 * 100
