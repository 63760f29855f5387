"""Steering on the page: reviews of plans, the actions of each state, errors and refusals."""

from pathlib import Path

from playwright.async_api import Browser, expect
from support.endpoint import Answer, Call, Endpoint, WorkerGate, failing, hang
from support.page import (
    action_names,
    button,
    create_instance,
    expect_state,
    get_instance,
    open_page,
    page_url,
)
from support.process import on_endpoint, process


async def test_a_plan_is_edited_and_approved(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(page_url(service))
        await page.get_by_label("Prompt").fill("Build it")
        await page.get_by_text("Options").click()
        await page.get_by_label("Small model: works on subtasks").fill("openai/other")
        await page.get_by_label("Let me review the plan").check()
        await button(page, "Start").click()
        await expect_state(page, "Plan to review")
        assert endpoint.count("work") == 0
        first = page.locator(".draft").nth(0)
        await first.get_by_label("Title").fill("A better first part")
        await first.get_by_label("Instructions").fill("Do it well.")
        await button(page, "Remove Part 2").click()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        await button(page, "Add a subtask").click()
        await expect(page.locator(".draft")).to_have_count(3)
        await page.locator(".draft").nth(2).get_by_label("Instructions").fill("And this.")
        await button(page, "Approve the edited plan").click()
        await expect_state(page, "Complete")
        instance = await get_instance(service, page.url.rpartition("/")[2])
    subtasks = {subtask["id"]: subtask for subtask in instance["subtasks"]}
    assert list(subtasks) == ["t1", "t3", "t4"]
    assert subtasks["t1"]["title"] == "A better first part"
    assert subtasks["t1"]["instructions"] == "Do it well."
    assert subtasks["t3"]["dependsOn"] == ["t1"]
    assert instance["config"]["smallModel"] == "openai/other"


async def test_an_invalid_edit_is_refused_with_its_reason_and_a_rejected_plan_is_replaced(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True})
        await page.goto(page_url(service, "a"))
        await page.locator(".draft").nth(0).get_by_label("t2").check()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        await button(page, "Approve the edited plan").click()
        await expect(page.get_by_role("alert")).to_contain_text("in a cycle")
        await page.get_by_label("What should the next plan do better").fill("fewer words, please")
        await button(page, "Reject and plan again").click()
        await endpoint.wait_for_calls(2)
        await expect(page.locator(".draft")).to_have_count(2)
        await button(page, "Approve").click()
        await expect_state(page, "Complete")
        assert "fewer words, please" in endpoint.calls[1].prompt_text


async def test_the_actions_offered_are_those_that_the_state_allows(browser: Browser, tmp_path: Path) -> None:
    gate = WorkerGate()
    async with (
        Endpoint(gate, chained=True) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a")
        await page.goto(page_url(service, "a"))
        await expect(page.locator(".lane.running")).to_have_count(1)
        assert await action_names(page) == ["Pause", "Terminate", "Fork…"]
        await button(page, "Pause").click()
        await expect_state(page, "Pausing")
        gate.opened.set()
        await expect_state(page, "Paused")
        assert await action_names(page) == ["Resume", "Terminate", "Fork…"]
        gate.opened.clear()
        await button(page, "Resume").click()
        await expect_state(page, "Running")
        await button(page, "Terminate").click()
        await expect_state(page, "Terminated")
        assert await action_names(page) == ["Retry", "Retry with changes…", "Restart…", "Fork…", "Delete…"]
        gate.opened.set()
        await button(page, "Retry").click()
        await expect_state(page, "Complete")
        calls = endpoint.count("work", "t1")
        await button(page, "Restart…").click()
        await button(page, "Restart").click()
        await expect_state(page, "Complete")
        await expect(page.locator(".bar")).to_have_count(5)
        assert endpoint.count("work", "t1") == calls + 1


async def test_an_error_is_shown_with_its_remedy_and_a_retry_runs_only_what_failed(
    browser: Browser, tmp_path: Path
) -> None:
    def script(call: Call) -> Answer:
        return failing(404, "no such model") if call.body["model"] == "small" else None

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a")
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Errored")
        error = (await get_instance(service, "a"))["error"]
        await expect(page.locator(".error")).to_contain_text(error["message"])
        await expect(page.locator(".error h2")).to_have_text(error["reason"])
        await button(page, "Retry with changes…").click()
        await page.get_by_role("dialog").get_by_label("Small model: works on subtasks").fill("openai/other")
        await page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        await expect_state(page, "Complete")
        assert endpoint.count("planning") == 1
        await expect(page.locator(".error")).to_have_count(0)


async def test_a_refusal_and_an_outage_are_shown_and_no_input_is_lost(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(page_url(service))
        await page.get_by_label("Prompt").fill("Build it")
        await page.get_by_text("Options").click()
        await page.get_by_label("Big model: plans and synthesises").fill("nobody/knows")
        await button(page, "Start").click()
        await expect(page.get_by_role("alert")).to_contain_text("nobody")
        await expect(page.get_by_label("Prompt")).to_have_value("Build it")
        await page.get_by_label("Big model: plans and synthesises").fill("")
        await service.kill()
        await button(page, "Start").click()
        await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        await service.start("up")
        await button(page, "Start").click()
        await expect_state(page, "Running")
        await page.goto(page_url(service, "nobody"))
        await expect(page.locator("h1")).to_have_text("No such instance")
