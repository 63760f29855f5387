"""The page folds events by itself: what it shows must be what the service says."""

from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Browser
from support.endpoint import Answer, Call, Endpoint, failing
from support.process import on_endpoint, process

FOLD = """async (id) => {
    const { apply, empty, EVENT_NAMES } = await import('/-/ui/fold.js');
    const instance = empty(id);
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
SAME = ["id", "state", "prompt", "summary", "finalResult", "forkedFrom", "labels", "config"]
SAME_OF_SUBTASK = ["id", "title", "instructions", "dependsOn", "attempt", "model", "output"]


def millis(time: str | None) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000) if time else 0


async def planned(rest: httpx.AsyncClient, instance_id: str, *, times: int) -> None:
    """Return once the instance has been planned so many times."""
    async with rest.stream("GET", f"/{instance_id}/events") as events:
        async for line in events.aiter_lines():
            times -= line == "event: plan_completed"
            if not times:
                return


async def test_the_page_knows_what_the_service_knows(browser: Browser, tmp_path: Path) -> None:
    moods = {"well": "", "badly": "t2", "retried": "t2", "restarted": ""}

    def script(call: Call) -> Answer:
        sick = next(bad for mood, bad in moods.items() if f"it {mood}" in call.told)
        return failing(400, "no") if sick and call.subtask_id == sick else None

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False, timeout=60) as rest,
    ):
        for mood in moods:
            config = {"reviewPlan": mood == "well", "instructions": "mind it"}
            await rest.post("/", json={"prompt": f"do it {mood}", "id": mood, "config": config})
        await planned(rest, "well", times=1)
        await rest.post("/well:review", json={"decision": "DECISION_REJECT", "feedback": "less"})
        await planned(rest, "well", times=2)
        await rest.post("/well:review", json={"decision": "DECISION_APPROVE"})
        for mood in moods:
            await rest.get(f"/{mood}:wait", params={"timeout": "30s"})
        moods["retried"] = ""
        await rest.post("/retried:retry", json={"config": {"smallModel": "openai/other"}})
        await rest.post("/restarted:restart", json={})
        await rest.post("/well:fork", json={"newId": "forked", "stage": "STAGE_SYNTHESIS"})
        moods["forked"] = ""
        page = await browser.new_page()
        await page.goto(f"http://{service.rest_address}/-/ui/")
        for mood in moods:
            await rest.get(f"/{mood}:wait", params={"timeout": "30s"})
            answer = await rest.get(f"/{mood}", params={"view": "VIEW_FULL"})
            assert_same(await page.evaluate(FOLD, mood), answer.json()["instance"])
        await page.close()


def assert_same(shown: dict[str, Any], known: dict[str, Any]) -> None:
    for name in ("subtasks", "workers"):
        known["config"].pop(name)  # the transcoder prints an empty list, an event leaves it out
    assert {name: shown[name] for name in SAME} == {name: known[name] for name in SAME}
    for name in ("createTime", "startTime", "endTime", "updateTime"):
        assert abs(shown[name] - millis(known[name])) <= 1, name
    assert shown["lastSequence"] == int(known["lastSequence"])
    for name in ("usage", "ownUsage"):
        tokens = {kind: int(known[name][kind]) for kind in ("inputTokens", "outputTokens")}
        assert shown[name] == {**known[name], **tokens}, name
    assert (shown["error"] or {}).get("reason") == (known.get("error") or {}).get("reason")
    for mine, theirs in zip(shown["subtasks"], known["subtasks"], strict=True):
        assert {name: mine[name] for name in SAME_OF_SUBTASK} == {
            name: theirs[name] for name in SAME_OF_SUBTASK
        }
        assert f"SUBTASK_STATE_{mine['state']}" == theirs["state"]
