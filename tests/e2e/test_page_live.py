"""The page with a staged service: live text, a list that changes, and the scale of the timeline."""

import re

import pytest
from playwright.async_api import Page, expect
from support.page import evaluate_in_module
from support.staged_service import BIG, PROMPT, SMALL, StagedService, rate_limited, started

from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1.instance_pb2 import Failure
from orchestrator.v1.orchestrator_pb2 import STAGE_SUBTASKS, DeleteInstanceRequest, OutputDelta

LATER = Failure(reason="RATE_LIMITED", message="the endpoint asks to wait")


def delta(text: str, offset: int = 0, *, attempt: int = 1, subtask_id: str = "t1") -> OutputDelta:
    return OutputDelta(subtask_id=subtask_id, attempt=attempt, offset=offset, text=text)


async def test_live_text_is_shown_as_it_is_written(stage: tuple[StagedService, str], page: Page) -> None:
    service, address = stage
    await service.stage("live", started(), ago_s=10)
    await page.goto(f"{address}#/instances/live")
    note, written = page.locator("[data-lane=subtask-t1] .note"), page.locator(".live-text")
    await service.write("live", delta("The 😀 "), delta("first", 6))
    await expect(note).to_have_text("The 😀 first")
    await page.locator("[data-lane=subtask-t1] .row").click()
    await expect(written).to_have_text("The 😀 first")
    again = OutputDelta(subtask_id="t1", attempt=1, offset=6, text="first words")
    await service.write("live", again)
    await expect(written).to_have_text("The 😀 first words")
    await service.record(
        "live", rate_limited(in_s=0), pb.SubtaskStarted(subtask_id="t1", attempt=2, model=SMALL)
    )
    await expect(written).to_have_count(0)
    await service.write("live", delta("stale", 17), delta("Anew", attempt=2))
    await expect(written).to_have_text("Anew")
    await service.record(
        "live",
        pb.SubtaskCompleted(subtask_id="t1", attempt=2, model=SMALL, output="What **counts**."),
        pb.SynthesisStarted(attempt=1, model=BIG),
    )
    await expect(page.locator(".panel .markdown strong")).to_have_text("counts")
    await expect(written).to_have_count(0)
    await service.write("live", delta("# All\n\nin *one*", subtask_id=""))
    await expect(page.locator(".result h2")).to_have_text("Result, as it is written")
    await expect(page.locator(".result em")).to_have_text("one")
    await service.record(
        "live",
        pb.SynthesisCompleted(attempt=1, model=BIG, final_result="# All\n\nin one"),
        pb.InstanceCompleted(),
    )
    await expect(page.locator(".result h2")).to_have_text("Result")
    await expect(page.locator(".result em")).to_have_count(0)


async def test_a_result_that_was_cut_off_is_not_shown_as_complete(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("cut", started(), ago_s=10)
    await page.goto(f"{address}#/instances/cut")
    await service.record(
        "cut",
        pb.SubtaskCompleted(subtask_id="t1", attempt=1, model=SMALL, output="One."),
        pb.SynthesisStarted(attempt=1, model=BIG),
    )
    await service.write("cut", delta("Half of", subtask_id=""))
    await expect(page.locator(".result h2")).to_have_text("Result, as it is written")
    await service.record("cut", pb.InstanceTerminated())
    await expect(page.locator(".result h2")).to_have_text("Result, as far as it was written")
    await expect(page.get_by_role("link", name="Download .md")).to_have_count(0)


async def test_the_list_pages_filters_and_stays_current(stage: tuple[StagedService, str], page: Page) -> None:
    service, address = stage
    for number in range(65):
        end = pb.InstanceErrored(error=LATER) if number % 13 == 0 else pb.InstanceTerminated()
        await service.stage(f"old-{number}", [(0, PROMPT), (1, end)], ago_s=1000 - number)
    items = page.locator(".item")
    await page.goto(address)
    await expect(items).to_have_count(30)
    await page.get_by_role("button", name="Show older").click()
    await expect(items).to_have_count(60)
    await page.get_by_role("link", name="Errored", exact=True).click()
    await expect(items).to_have_count(5)
    await expect(page.get_by_role("button", name="Show older")).to_have_count(0)
    await service.stage("new", started(), ago_s=0)
    await service.record("new", pb.InstanceErrored(error=LATER))
    await expect(items).to_have_count(6)
    await expect(items.first).to_have_attribute("href", "#/instances/new?state=errored")
    await items.first.click()
    await expect(page.locator(".error h2")).to_have_text("RATE_LIMITED")
    await service.record("old-0", pb.InstanceRetried(config=PROMPT.config))
    await expect(items).to_have_count(5)
    await page.get_by_role("link", name="Active", exact=True).click()
    await expect(items).to_have_count(1)
    await page.go_back()
    await expect(items).to_have_count(5)


async def test_an_instance_is_forked_and_deleted(stage: tuple[StagedService, str], page: Page) -> None:
    service, address = stage
    await service.stage("source", [*started(), (5, pb.InstanceErrored(error=LATER))], ago_s=60)
    await page.goto(f"{address}#/instances/source")
    await page.get_by_role("button", name="Fork…").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Keep the outputs")).to_be_disabled()
    await dialog.get_by_label("Keep the plan").check()
    await dialog.get_by_label("Id of the new instance").fill("mine")
    await dialog.get_by_label("Small model").fill("openai/other")
    await dialog.get_by_role("button", name="Fork").click()
    await expect(page.get_by_text("forked from source")).to_be_visible()
    assert page.url == f"{address}#/instances/mine"
    request = service.forks[-1]
    assert (request.id, request.new_id, request.stage) == ("source", "mine", STAGE_SUBTASKS)
    assert request.config.small_model == "openai/other"
    assert not request.config.HasField("big_model")
    fork = page.locator('.item[href$="/mine"]').get_by_text("fork", exact=True)
    await expect(fork).to_have_attribute("title", re.compile("^forked from source: "))
    await expect(page.locator('.item[href$="/source"]').get_by_text("fork", exact=True)).to_have_count(0)
    await page.get_by_role("link", name="source").click()
    await page.get_by_role("button", name="Delete…").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(page).to_have_url(f"{address}#/")
    assert "source" not in service.events
    await expect(page.locator('.item[href$="/source"]')).to_have_count(0)
    await expect(page.locator('.item[href$="/mine"]')).to_have_count(1)


async def test_an_instance_that_was_deleted_elsewhere_leaves_the_list_when_it_is_opened(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    for name in ("stays", "gone"):
        await service.stage(name, [*started(), (5, pb.InstanceTerminated())], ago_s=0)
    await page.goto(address)
    row = page.locator('.item[href$="/gone"]')
    await expect(row).to_have_count(1)
    await service.DeleteInstance(DeleteInstanceRequest(id="gone"), None)
    await row.click()
    await expect(page.get_by_role("heading", name="No such instance")).to_be_visible()
    await expect(row).to_have_count(0)
    await expect(page.locator('.item[href$="/stays"]')).to_have_count(1)


@pytest.mark.parametrize("width", [320, 761, 1280, 1920])
async def test_the_page_opens_without_a_failing_request_and_fits_the_window(
    width: int, stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage(f"old-{width}", [(0, PROMPT), (1, pb.InstanceTerminated())], ago_s=0)
    errors: list[str] = []
    page.on("response", lambda answer: errors.append(answer.url) if answer.status >= 400 else None)
    page.on("console", lambda message: errors.append(message.text))
    await page.set_viewport_size({"width": width, "height": 900})
    await page.goto(f"{address}?{width}#/new")
    await page.get_by_label("Prompt").wait_for()
    await expect(page.locator(f'.item[href$="/old-{width}"]')).to_have_count(1)
    await service.stage(f"new-{width}", started(), ago_s=0)
    await service.record(f"new-{width}", pb.InstanceTerminated())
    await expect(page.locator(f'.item[href$="/new-{width}"] .tone')).to_have_text("Terminated")
    assert errors == []
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert await page.evaluate(size) == [width, 900]


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        pytest.param([(1, 0, "ab"), (1, 2, "cd")], "abcd", id="in a row"),
        pytest.param([(1, 0, "ab"), (1, 0, "ab"), (1, 1, "bc")], "abc", id="twice"),
        pytest.param([(1, 0, "😀é"), (1, 2, "x")], "😀éx", id="code points"),
        pytest.param([(1, 0, "😀😀"), (1, 1, "😀y")], "😀😀y", id="overlap"),
        pytest.param([(1, 0, "a long thought"), (1, 0, "ab"), (1, 2, "c")], "abc", id="restarted"),
        pytest.param([(1, 40, "amid 😀"), (1, 45, "it")], "… amid it", id="restarted after a gap"),
        pytest.param([(1, 0, "old"), (2, 0, "new")], "new", id="new attempt"),
        pytest.param([(2, 0, "new"), (1, 3, "late")], "new", id="stale attempt"),
        pytest.param([(1, 40, "amid"), (1, 44, " it")], "… amid it", id="joined late"),
        pytest.param([(1, 0, "ab"), (1, 9, "after")], "… after", id="gap"),
        pytest.param([(1, 9, "late"), (1, 0, "the start")], "the start", id="replayed"),
        pytest.param([(1, 0, "")], "", id="empty"),
    ],
)
async def test_deltas_are_assembled_by_attempt_and_offset(
    deltas: list[tuple[int, int, str]], text: str, stage: tuple[StagedService, str], page: Page
) -> None:
    sent = [
        {"subtaskId": "t1", "attempt": attempt, "offset": str(offset), "text": piece}
        for attempt, offset, piece in deltas
    ]
    body = "const texts = new m.LiveTexts(); a[0].forEach((it) => texts.append(it)); return texts.get('t1');"
    assert await evaluate_in_module(page, stage[1], "texts.js", body, sent) == text


async def test_long_gaps_in_which_nothing_ran_are_collapsed(
    stage: tuple[StagedService, str], page: Page
) -> None:
    body = """
        const hour = 3_600_000;
        const scale = m.timeScale([[0, 10_000], [12_000, 20_000], [hour, hour + 20_000]], 0, hour + 20_000);
        return {
            breaks: scale.breaks.length,
            positions: [0, 10_000, 20_000, hour, hour + 20_000].map(scale.positionOf),
            ticks: scale.ticks.map((tick) => tick.ms),
        };
    """
    found = await evaluate_in_module(page, stage[1], "scale.js", body)
    assert found["breaks"] == 1
    assert found["positions"] == pytest.approx([0, 0.24, 0.48, 0.52, 1])
    assert found["ticks"] == [0, 10_000, 20_000, 30_000, 40_000]
