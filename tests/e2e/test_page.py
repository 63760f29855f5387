"""The page in real Chromium, with a real service and a scripted endpoint: an instance to its end."""

import asyncio
from pathlib import Path

import httpx
from aiohttp import web
from playwright.async_api import Browser, expect
from support import streams
from support.endpoint import Answer, Call, Endpoint, WorkerGate, completion
from support.page import (
    action_names,
    button,
    create_instance,
    expect_state,
    get_instance,
    lane,
    open_page,
    page_url,
)
from support.process import on_endpoint, process

from orchestrator.models.scripted import plan_text


class DictatedWorkers:
    """A script of workers that stream each text put into `pieces`; an empty one ends the answer."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, call: Call) -> Answer:
        return self._stream if call.role == "work" else None

    async def _stream(self, call: Call) -> web.StreamResponse:
        assert call.body["stream"]
        response = await streams.start_response(call.request)
        while piece := await self.pieces.get():
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}}]}
            await response.write(streams.encode(chunk))
        for event in streams.completion_events(completion(""), call.body):
            await response.write(streams.encode(event))
        return response


async def test_a_prompt_is_typed_and_watched_to_its_end(browser: Browser, tmp_path: Path) -> None:
    gate = WorkerGate()
    async with (
        Endpoint(gate) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.goto(f"http://{service.rest_address}/")
        assert page.url == page_url(service)
        await page.get_by_label("Prompt").fill("Write a haiku\nabout logs")
        await page.get_by_label("Prompt").press("Control+Enter")
        await expect_state(page, "Running")
        await expect(page.locator("h1")).to_have_text("Write a haiku")
        await expect(page).to_have_title("Running: Write a haiku")
        await expect(page.locator(".lane")).to_have_count(5)
        await expect(page.locator(".lane.running")).to_have_count(3)
        await expect(page.locator(".item .tone")).to_have_text("Running")
        gate.opened.set()
        await expect_state(page, "Complete")
        await expect(page.locator(".result h3")).to_have_text("The result")
        await expect(page.locator(".item .tone")).to_have_text("Complete")
        assert await action_names(page) == ["Continue…", "Restart…", "Fork…", "Delete…"]
        facts = await page.locator(".facts").inner_text()
        assert "3 of 3" in facts
        assert "openai/big" in facts
        await button(page, "Copy Markdown the result as Markdown").click()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == "# The result\n\nAll parts, put together."
        await lane(page, "Part 2").locator(".row").click()
        await expect(page.locator(".panel .markdown")).to_have_text("The output of t2.")
        await page.reload()
        await expect_state(page, "Complete")


async def test_after_a_crash_of_the_service_the_page_resumes_without_a_gap(
    browser: Browser, tmp_path: Path
) -> None:
    gate = WorkerGate()
    async with (
        Endpoint(gate) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a")
        await page.goto(page_url(service, "a"))
        await expect(page.locator(".lane.running")).to_have_count(3)
        await expect(page.locator(".connection")).to_have_text("Live")
        await service.kill()
        await expect(page.locator(".connection")).to_have_text("Reconnecting…")
        await expect_state(page, "Running")
        gate.opened.set()
        await service.start("up")
        await expect_state(page, "Complete")
        await expect(page.locator(".connection")).to_have_text("Live")
        last = int((await get_instance(service, "a"))["lastSequence"])
        shown = await page.locator(".log li").evaluate_all("items => items.map(item => item.value)")
        assert shown == list(range(1, last + 1))
        await lane(page, "Part 1").locator(".row").click()
        await expect(lane(page, "Part 1").locator(".attempts")).to_contain_text("INTERRUPTED")
        await expect(page.locator(".item .tone")).to_have_text("Complete")


async def test_a_finished_instance_that_is_restarted_is_followed_again(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a")
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Complete")
        async with httpx.AsyncClient(trust_env=False) as elsewhere:
            await elsewhere.post(f"http://{service.rest_address}/a:restart", json={})
        await expect(page.locator(".log li", has_text="instance completed")).to_have_count(2)
        await expect_state(page, "Complete")
        await expect(page.locator(".bar")).to_have_count(5)
        await expect(page.locator(".connection")).to_have_text("Live")


async def test_a_subtasks_text_grows_while_its_call_is_open(browser: Browser, tmp_path: Path) -> None:
    workers = DictatedWorkers()
    async with (
        Endpoint(workers, subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True})
        await page.goto(page_url(service, "a"))
        await button(page, "Approve").click()
        await expect(page.locator(".lane.running")).to_have_count(1)
        written = page.locator(".live-text")
        await lane(page, "Part 1").locator(".row").click()
        await workers.pieces.put("The first ")
        await expect(written).to_have_text("The first ")
        await workers.pieces.put("words, then more.")
        await expect(written).to_have_text("The first words, then more.")
        await page.reload()
        await lane(page, "Part 1").locator(".row").click()
        await expect(written).to_have_text("The first words, then more.")
        await workers.pieces.put(" And the last.")
        await expect(written).to_have_text("The first words, then more. And the last.")
        assert endpoint.open_calls == 1
        await workers.pieces.put("")
        await expect_state(page, "Complete")
        await expect(written).to_have_count(0)
        await expect(page.locator(".panel .markdown")).to_have_text(
            "The first words, then more. And the last."
        )


async def test_the_list_shows_a_plan_to_review_that_was_being_planned_when_the_page_opened(
    browser: Browser, tmp_path: Path
) -> None:
    is_planned = asyncio.Event()

    async def plan(_: Call) -> web.StreamResponse:
        await is_planned.wait()
        return web.json_response(completion(plan_text(1)))

    async with (
        Endpoint(lambda _: plan) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True})
        await endpoint.wait_for_calls(1)
        await page.goto(page_url(service))
        await expect(page.locator(".item")).to_contain_text("Running")
        await expect(page.locator(".connection")).to_have_text("Live")
        is_planned.set()
        await expect(page.locator(".item")).to_contain_text("Plan to review")


async def test_a_page_opened_during_a_call_shows_its_text_from_the_start(
    browser: Browser, tmp_path: Path
) -> None:
    workers = DictatedWorkers()
    async with (
        Endpoint(workers, subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a")
        await endpoint.wait_for_calls(2)
        await workers.pieces.put("Text from before")
        await page.goto(page_url(service, "a"))
        await lane(page, "Part 1").locator(".row").click()
        await expect(page.locator(".live-text")).to_have_text("Text from before")
        await workers.pieces.put(", and after.")
        await expect(page.locator(".live-text")).to_have_text("Text from before, and after.")
        assert endpoint.open_calls == 1
        await workers.pieces.put("")
        await expect_state(page, "Complete")
