"""What is decided on the page is decided of what was shown; what somebody else deleted leaves every tab."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, Route, expect
from support.endpoint import Answer, Call, Endpoint, failing
from support.page import assert_accessible, button, created, got, open_page, shows, ui
from support.process import Process, on_endpoint, process

from orchestrator.models.scripted import plan_text

FAILS = "fail"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    def script(call: Call) -> Answer:
        if call.role == "planning" and "otherwise" in call.told:
            return plan_text(3)
        return failing(400, "no") if call.body["model"] == FAILS else None

    folder: Path = tmp_path_factory.mktemp("seen")
    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(folder, "up", **on_endpoint(endpoint.url)) as running,
    ):
        yield running


async def posted(service: Process, path: str, **fields: object) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        answer = await rest.post(path, json=fields)
        assert answer.status_code == 200, answer.text


async def deleted(service: Process, instance_id: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        answer = await rest.delete(f"/{instance_id}")
        assert answer.status_code == 200, answer.text


async def overtaken(page: Page, path: str, overtake: Callable[[], Awaitable[None]]) -> None:
    """Let something happen between a click and the service's taking the request."""

    async def behind(route: Route) -> None:
        await overtake()
        await route.continue_()

    await page.route(f"**{path}", behind, times=1)


@asynccontextmanager
async def answer_held(page: Page, path: str) -> AsyncIterator[None]:
    """The service does what is asked next, but its answer reaches the page only after the block."""
    released = asyncio.Event()
    delivered = asyncio.Event()

    async def late(route: Route) -> None:
        response = await route.fetch()
        await released.wait()
        await route.fulfill(response=response)
        delivered.set()

    await page.route(f"**{path}", late, times=1)
    yield
    released.set()
    await delivered.wait()


async def test_an_approval_never_goes_to_a_plan_that_nobody_saw_and_no_edit_is_lost(
    service: Process, browser: Browser
) -> None:
    await created(service, "seen", config={"reviewPlan": True})

    async def paused_and_resumed() -> None:
        await posted(service, "/seen:pause")
        await posted(service, "/seen:resume")

    async with open_page(browser) as page:
        await page.goto(ui(service, "seen"))
        await shows(page, "Plan to review")
        await page.locator("[name=instructions]").first.fill("Do all of it.")
        await overtaken(page, "/seen:review", paused_and_resumed)
        await button(page, "Approve the edited plan").click()
        await expect(page.locator(".review [role=alert]")).to_contain_text(
            "It has gone on meanwhile: pause requested, paused, resumed. Nothing was changed"
        )
        assert (await got(service, "seen"))["state"] == "STATE_WAITING"
        await posted(service, "/seen:review", decision="DECISION_REJECT", feedback="otherwise")
        await expect(page.get_by_text("This is your edit of an earlier plan")).to_have_count(1)
        await expect(page.locator("[name=instructions]").first).to_have_value("Do all of it.")
        await assert_accessible(page)
        await button(page, "Approve the edited plan").click()
        await shows(page, "Complete")
        assert (await got(service, "seen"))["subtasks"][0]["instructions"] == "Do all of it."
        await expect(page.locator(".stale-review")).to_have_count(0)


async def test_the_plan_that_waits_now_is_one_click_away_from_an_edit_of_an_earlier_one(
    service: Process, browser: Browser
) -> None:
    await created(service, "newer", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(ui(service, "newer"))
        instructions = page.locator("[name=instructions]")
        await instructions.first.fill("Do all of it.")
        await posted(service, "/newer:review", decision="DECISION_REJECT", feedback="otherwise")
        await button(page, "Show the new plan").click()
        await expect(instructions).to_have_count(3)
        await expect(instructions.first).to_have_value("Write part 1 of 3.")
        await expect(page.locator(".notice")).to_have_count(0)
        await button(page, "Approve").click()
        await shows(page, "Complete")


async def test_the_next_plan_is_shown_as_it_is_where_it_reads_as_the_rejected_one_and_precedes_the_answer(
    service: Process, browser: Browser
) -> None:
    await created(service, "same", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(ui(service, "same"))
        instructions = page.locator("[name=instructions]")
        await instructions.first.fill("Do all of it.")
        async with answer_held(page, "/same:review"):
            await button(page, "Reject and plan again").click()
            await expect(page.locator(".log li", has_text="plan completed")).to_have_count(2)
            await expect(instructions.first).to_have_value("Write part 1 of 2.")
            await expect(button(page, "Approve")).to_be_enabled()
        await button(page, "Approve").click()
        await shows(page, "Complete")


async def test_an_edit_of_the_next_plan_outlives_the_answer_to_the_rejection_of_the_last_one(
    service: Process, browser: Browser
) -> None:
    await created(service, "next", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(ui(service, "next"))
        await shows(page, "Plan to review")
        async with answer_held(page, "/next:review"):
            await button(page, "Reject and plan again").click()
            await expect(page.locator(".log li", has_text="plan completed")).to_have_count(2)
            await page.locator("[name=instructions]").first.fill("Do all of it.")
        await posted(service, "/next:pause")
        await expect(page.locator(".stale-review h2")).to_have_text("The plan waits no more")
        await posted(service, "/next:resume")
        await expect(page.locator("[name=instructions]").first).to_have_value("Do all of it.")
        await button(page, "Approve the edited plan").click()
        await shows(page, "Complete")


async def test_an_edit_comes_back_with_its_refusal_where_the_next_plan_precedes_it(
    service: Process, browser: Browser
) -> None:
    await created(service, "refused", config={"reviewPlan": True})
    async with open_page(browser) as page:
        instructions = page.locator("[name=instructions]")

        async def rejected() -> None:
            await posted(service, "/refused:review", decision="DECISION_REJECT", feedback="otherwise")
            await expect(instructions).to_have_count(3)

        await page.goto(ui(service, "refused"))
        await instructions.first.fill("Do all of it.")
        await overtaken(page, "/refused:review", rejected)
        await button(page, "Approve the edited plan").click()
        await expect(page.locator(".review [role=alert]")).to_contain_text("It has gone on meanwhile")
        await expect(instructions.first).to_have_value("Do all of it.")
        await expect(page.get_by_text("This is your edit of an earlier plan")).to_have_count(1)
        await page.get_by_label("What should the next plan do better").fill("fewer words")
        await expect(page.locator(".review [role=alert]")).to_have_count(0)


async def test_what_is_typed_while_a_decision_is_under_way_outlives_its_refusal(
    service: Process, browser: Browser
) -> None:
    await created(service, "typed", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(ui(service, "typed"))
        await page.locator(".draft").nth(0).get_by_label("t2").check()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        async with answer_held(page, "/typed:review"):
            await button(page, "Approve the edited plan").click()
            await expect(button(page, "Approve the edited plan")).to_be_disabled()
            await page.locator("[name=instructions]").first.fill("Do all of it.")
        await expect(page.locator(".review [role=alert]")).to_contain_text("in a cycle")
        await posted(service, "/typed:pause")
        await posted(service, "/typed:resume")
        await expect(page.locator(".log li", has_text="instance resumed")).to_have_count(1)
        await expect(page.locator("[name=instructions]").first).to_have_value("Do all of it.")
        await expect(page.locator(".review [role=alert]")).to_contain_text("in a cycle")


async def test_an_edit_is_kept_where_somebody_else_has_decided(service: Process, browser: Browser) -> None:
    await created(service, "late", config={"reviewPlan": True})
    async with open_page(browser) as page:
        await page.goto(ui(service, "late"))
        await page.locator("[name=instructions]").first.fill("Do all of it.")
        await posted(service, "/late:review", decision="DECISION_APPROVE")
        await shows(page, "Complete")
        await expect(page.locator(".stale-review h2")).to_have_text("The plan waits no more")
        await expect(button(page, "Copy my edit your edited plan as JSON")).to_be_visible()
        await assert_accessible(page)
        await button(page, "Discard").click()
        await expect(page.locator(".stale-review")).to_have_count(0)


async def test_a_retry_of_what_somebody_else_has_retried_says_so(service: Process, browser: Browser) -> None:
    await created(service, "retried", config={"bigModel": f"openai/{FAILS}"})

    async def retried() -> None:
        await posted(service, "/retried:retry")
        while (await got(service, "retried"))["state"] != "STATE_ERRORED":  # noqa: ASYNC110  a state of the service
            await asyncio.sleep(0.05)

    async with open_page(browser) as page:
        await page.goto(ui(service, "retried"))
        await shows(page, "Errored")
        await overtaken(page, "/retried:retry", retried)
        await button(page, "Retry").click()
        alert = page.locator(".actions [role=alert]").first
        await expect(alert).to_contain_text("It has gone on meanwhile: retried, planning started")
        await button(page, "Restart…").click()
        await overtaken(page, "/retried:restart", retried)
        await button(page, "Restart").click()
        await expect(page.locator("dialog [role=alert]")).to_contain_text("It has gone on meanwhile: retried")
        await button(page, "Restart").click()
        await expect(page.locator("dialog")).to_have_count(0)


async def test_what_is_deleted_leaves_the_list_of_every_tab_and_an_open_page_says_so(
    service: Process, browser: Browser
) -> None:
    await created(service, "gone")
    async with open_page(browser) as reader, open_page(browser) as other:
        await reader.goto(ui(service, "gone"))
        await other.goto(ui(service))
        await shows(reader, "Complete")
        rows = [page.locator('.item[href$="/gone"]') for page in (reader, other)]
        for row in rows:
            await expect(row).to_have_count(1)
        await deleted(service, "gone")
        for row in rows:
            await expect(row).to_have_count(0)
        alert = reader.locator(".instance [role=alert]")
        await expect(alert).to_have_text("This instance was deleted. What you see is all that is left of it.")
        await expect(reader.locator(".result")).to_be_visible()
        for name in ("Restart…", "Fork…", "Delete…"):
            await expect(button(reader, name)).to_have_count(0)
        await assert_accessible(reader)
        await created(service, "gone", config={"reviewPlan": True})
        await shows(reader, "Plan to review")
        await expect(alert).to_have_count(0)
        await expect(rows[1]).to_have_count(1)
