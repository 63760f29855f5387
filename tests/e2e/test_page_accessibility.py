"""The page by keyboard, on a phone, and as axe checks it."""

import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect
from support.browser import DESKTOP, PHONE
from support.endpoint import Answer, Call, Endpoint, WorkerGate, failing, hang
from support.page import (
    assert_accessible,
    assert_fits_phone,
    button,
    create_instance,
    expect_state,
    lane,
    open_page,
    page_url,
)
from support.process import on_endpoint, process

WIDE = "word" * 60 + " \n\n```\n" + "code " * 80 + "\n```\n\n|" + "cell|" * 30 + "\n|" + "-|" * 30 + "\n"


async def test_the_page_works_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    gate = WorkerGate()
    async with (
        Endpoint(gate) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        focused = page.locator(":focus")
        await page.goto(page_url(service))
        await page.keyboard.press("Tab")
        await expect(focused).to_have_text("Skip to the content")
        await page.keyboard.press("Enter")
        await expect(focused).to_have_text("What is to be done?")
        await page.keyboard.press("Tab")
        await page.keyboard.type("Build it")
        for name in ("Attach files…", "Attach a folder…", "Options"):
            await page.keyboard.press("Tab")
            await expect(focused).to_have_text(name)
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect_state(page, "Running")
        gate.opened.set()
        await expect_state(page, "Complete")
        await expect(page.get_by_role("status").filter(has_text="Complete.")).to_be_attached()
        await lane(page, "Part 1").locator(".row").focus()
        await page.keyboard.press("Enter")
        await expect(focused).to_have_attribute("aria-expanded", "true")
        await expect(page.locator(".panel .markdown")).to_be_visible()
        await button(page, "Restart…").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await page.evaluate("document.activeElement.closest('dialog') !== null")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(focused).to_have_text("Restart…")


async def test_at_phone_width_nothing_scrolls_sideways(browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.role != "planning":
            return WIDE
        subtasks = [
            {"id": f"t{n}", "title": "t" * 190, "instructions": WIDE, "depends_on": [], "worker": ""}
            for n in range(1, 9)
        ]
        return json.dumps({"summary": WIDE, "subtasks": subtasks})

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser, **PHONE) as page,
    ):
        await create_instance(service, "done", prompt=WIDE)
        await create_instance(service, "review", prompt=WIDE, config={"reviewPlan": True})
        await page.goto(page_url(service))
        await page.locator(".item", has_text="Plan to review").tap()
        await expect_state(page, "Plan to review")
        await expect(page.locator(":focus")).to_have_id("instance-title")
        await assert_fits_phone(page)
        await page.get_by_role("link", name="All instances").tap()
        await expect(page.locator(".item")).to_have_count(2)
        await assert_fits_phone(page)
        await page.get_by_role("link", name="New").tap()
        await expect(page.locator(":focus")).to_have_text("What is to be done?")
        await page.get_by_text("Options").tap()
        await assert_fits_phone(page)
        await page.goto(page_url(service, "done"))
        await expect_state(page, "Complete")
        await page.locator(".row").nth(2).tap()
        await expect(page.locator(".panel .markdown")).to_be_visible()
        await assert_fits_phone(page)
        await button(page, "Fork…").tap()
        await assert_fits_phone(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_violations(scheme: str, browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if "broken" in call.prompt_text:
            return failing(401, "no")
        return hang if "endless" in call.prompt_text and call.role == "work" else None

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser, color_scheme=scheme, **DESKTOP) as page,
    ):
        await page.goto(page_url(service))
        await page.get_by_text("Options").click()
        await assert_accessible(page)
        await create_instance(service, "done", labels={"team": "a"})
        await page.goto(page_url(service, "done"))
        await expect_state(page, "Complete")
        await lane(page, "Part 1").locator(".row").click()
        for summary in await page.locator("main summary").all():
            await summary.click()
        await assert_accessible(page)
        await button(page, "Fork…").click()
        await assert_accessible(page)
        await create_instance(service, "review", config={"reviewPlan": True})
        await page.goto(page_url(service, "review"))
        await expect_state(page, "Plan to review")
        await assert_accessible(page)
        await create_instance(service, "failed", prompt="broken")
        await page.goto(page_url(service, "failed"))
        await expect_state(page, "Errored")
        await lane(page, "Planning").locator(".row").click()
        await assert_accessible(page)
        await create_instance(service, "running", prompt="endless")
        await page.goto(page_url(service, "running"))
        await expect(page.locator(".lane.running")).to_have_count(3)
        await assert_accessible(page)
