"""Actions on the page that conflict with what happened since it was rendered, and deletions elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, Route, expect
from support.endpoint import Answer, Call, Endpoint, failing
from support.page import (
    assert_accessible,
    button,
    create_instance,
    expect_state,
    get_instance,
    open_page,
    page_url,
    response_held,
)
from support.process import Process, on_endpoint, process

from orchestrator.models.scripted import plan_text

FAILS = "fail"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    def script(call: Call) -> Answer:
        if call.role == "planning" and "otherwise" in call.prompt_text:
            return plan_text(3)
        return failing(400, "no") if call.body["model"] == FAILS else None

    folder: Path = tmp_path_factory.mktemp("conflicts")
    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(folder, "up", **on_endpoint(endpoint.url)) as running,
    ):
        yield running


async def post(service: Process, path: str, **fields: object) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        answer = await rest.post(path, json=fields)
        assert answer.status_code == 200, answer.text


async def delete_instance(service: Process, instance_id: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        answer = await rest.delete(f"/{instance_id}")
        assert answer.status_code == 200, answer.text


async def act_before_request(page: Page, path: str, act: Callable[[], Awaitable[None]]) -> None:
    """Run `act` between the next click and its request to the service."""

    async def act_first(route: Route) -> None:
        await act()
        await route.continue_()

    await page.route(f"**{path}", act_first, times=1)


async def test_an_approval_of_a_plan_that_was_not_shown_is_refused_and_no_edit_is_lost(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "seen", config={"reviewPlan": True})

    async def pause_and_resume() -> None:
        await post(service, "/seen:pause")
        await post(service, "/seen:resume")

    async with open_page(browser) as page:
        await page.goto(page_url(service, "seen"))
        await expect_state(page, "Plan to review")
        await page.locator("[name=instructions]").first.fill("Do all of it.")
        await act_before_request(page, "/seen:review", pause_and_resume)
        await button(page, "Approve the edited plan").click()
        await expect(page.locator(".review [role=alert]")).to_contain_text(
            "It has gone on meanwhile: pause requested, paused, resumed. Nothing was changed"
        )
        assert (await get_instance(service, "seen"))["state"] == "STATE_WAITING"
        await post(service, "/seen:review", decision="DECISION_REJECT", feedback="otherwise")
        await expect(page.get_by_text("This is your edit of an earlier plan")).to_have_count(1)
        await expect(page.locator("[name=instructions]").first).to_have_value("Do all of it.")
        await assert_accessible(page)
        await button(page, "Approve the edited plan").click()
        await expect_state(page, "Complete")
        assert (await get_instance(service, "seen"))["subtasks"][0]["instructions"] == "Do all of it."
        await expect(page.locator(".stale-review")).to_have_count(0)


async def test_the_current_plan_is_one_click_away_from_an_edit_of_an_earlier_one(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "newer", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(page_url(service, "newer"))
        instructions = page.locator("[name=instructions]")
        await instructions.first.fill("Do all of it.")
        await post(service, "/newer:review", decision="DECISION_REJECT", feedback="otherwise")
        await button(page, "Show the new plan").click()
        await expect(instructions).to_have_count(3)
        await expect(instructions.first).to_have_value("Write part 1 of 3.")
        await expect(page.locator(".notice")).to_have_count(0)
        await button(page, "Approve").click()
        await expect_state(page, "Complete")


async def test_the_next_plan_is_shown_unedited_though_it_reads_the_same_and_precedes_the_response(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "same", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(page_url(service, "same"))
        instructions = page.locator("[name=instructions]")
        await instructions.first.fill("Do all of it.")
        async with response_held(page, "/same:review"):
            await button(page, "Reject and plan again").click()
            await expect(page.locator(".log li", has_text="plan completed")).to_have_count(2)
            await expect(instructions.first).to_have_value("Write part 1 of 2.")
            await expect(button(page, "Approve")).to_be_enabled()
        await button(page, "Approve").click()
        await expect_state(page, "Complete")


async def test_an_edit_of_the_next_plan_outlives_the_response_to_the_rejection_of_the_last_one(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "next", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(page_url(service, "next"))
        await expect_state(page, "Plan to review")
        async with response_held(page, "/next:review"):
            await button(page, "Reject and plan again").click()
            await expect(page.locator(".log li", has_text="plan completed")).to_have_count(2)
            await page.locator("[name=instructions]").first.fill("Do all of it.")
        await post(service, "/next:pause")
        await expect(page.locator(".stale-review h2")).to_have_text("The plan waits no more")
        await post(service, "/next:resume")
        await expect(page.locator("[name=instructions]").first).to_have_value("Do all of it.")
        await button(page, "Approve the edited plan").click()
        await expect_state(page, "Complete")


async def test_an_edit_is_shown_again_with_its_refusal_where_the_next_plan_came_first(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "refused", config={"reviewPlan": True})
    async with open_page(browser) as page:
        instructions = page.locator("[name=instructions]")

        async def reject() -> None:
            await post(service, "/refused:review", decision="DECISION_REJECT", feedback="otherwise")
            await expect(instructions).to_have_count(3)

        await page.goto(page_url(service, "refused"))
        await instructions.first.fill("Do all of it.")
        await act_before_request(page, "/refused:review", reject)
        await button(page, "Approve the edited plan").click()
        await expect(page.locator(".review [role=alert]")).to_contain_text("It has gone on meanwhile")
        await expect(instructions.first).to_have_value("Do all of it.")
        await expect(page.get_by_text("This is your edit of an earlier plan")).to_have_count(1)
        await page.get_by_label("What should the next plan do better").fill("fewer words")
        await expect(page.locator(".review [role=alert]")).to_have_count(0)


async def test_text_typed_while_a_decision_is_sent_outlives_its_refusal(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "typed", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(page_url(service, "typed"))
        await page.locator(".draft").nth(0).get_by_label("t2").check()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        async with response_held(page, "/typed:review"):
            await button(page, "Approve the edited plan").click()
            await expect(button(page, "Approve the edited plan")).to_be_disabled()
            await page.locator("[name=instructions]").first.fill("Do all of it.")
        await expect(page.locator(".review [role=alert]")).to_contain_text("in a cycle")
        await post(service, "/typed:pause")
        await post(service, "/typed:resume")
        await expect(page.locator(".log li", has_text="instance resumed")).to_have_count(1)
        await expect(page.locator("[name=instructions]").first).to_have_value("Do all of it.")
        await expect(page.locator(".review [role=alert]")).to_contain_text("in a cycle")


async def test_an_edit_is_retained_where_the_plan_was_decided_elsewhere(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "late", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(page_url(service, "late"))
        await page.locator("[name=instructions]").first.fill("Do all of it.")
        await post(service, "/late:review", decision="DECISION_APPROVE")
        await expect_state(page, "Complete")
        await expect(page.locator(".stale-review h2")).to_have_text("The plan waits no more")
        await expect(button(page, "Copy my edit your edited plan as JSON")).to_be_visible()
        await assert_accessible(page)
        await button(page, "Discard").click()
        await expect(page.locator(".stale-review")).to_have_count(0)


async def test_a_retry_after_one_elsewhere_is_refused_with_the_events_since(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "retried", config={"bigModel": f"openai/{FAILS}"})

    async def retry() -> None:
        await post(service, "/retried:retry")
        while (await get_instance(service, "retried"))["state"] != "STATE_ERRORED":  # noqa: ASYNC110  a state of the service
            await asyncio.sleep(0.05)

    async with open_page(browser) as page:
        await page.goto(page_url(service, "retried"))
        await expect_state(page, "Errored")
        await act_before_request(page, "/retried:retry", retry)
        await button(page, "Retry").click()
        alert = page.locator(".actions [role=alert]").first
        await expect(alert).to_contain_text("It has gone on meanwhile: retried, planning started")
        await button(page, "Restart…").click()
        await act_before_request(page, "/retried:restart", retry)
        await button(page, "Restart").click()
        await expect(page.locator("dialog [role=alert]")).to_contain_text("It has gone on meanwhile: retried")
        await button(page, "Restart").click()
        await expect(page.locator("dialog")).to_have_count(0)


async def test_a_deleted_instance_leaves_the_list_of_every_tab_and_its_open_page_says_so(
    service: Process, browser: Browser
) -> None:
    await create_instance(service, "gone")
    async with open_page(browser) as reader, open_page(browser) as other:
        await reader.goto(page_url(service, "gone"))
        await other.goto(page_url(service))
        await expect_state(reader, "Complete")
        rows = [page.locator('.item[href$="/gone"]') for page in (reader, other)]
        for row in rows:
            await expect(row).to_have_count(1)
        await delete_instance(service, "gone")
        for row in rows:
            await expect(row).to_have_count(0)
        alert = reader.locator(".instance [role=alert]")
        await expect(alert).to_have_text("This instance was deleted. What you see is all that is left of it.")
        await expect(reader.locator(".result")).to_be_visible()
        for name in ("Restart…", "Fork…", "Delete…"):
            await expect(button(reader, name)).to_have_count(0)
        await assert_accessible(reader)
        await create_instance(service, "gone", config={"reviewPlan": True})
        await expect_state(reader, "Plan to review")
        await expect(alert).to_have_count(0)
        await expect(rows[1]).to_have_count(1)
