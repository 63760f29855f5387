"""Support for tests of the page: open it, find its elements, check accessibility and width."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from axe_playwright_python import base as axe_package
from playwright.async_api import Browser, Locator, Page, Route, expect
from support.browser import DESKTOP
from support.process import Process

AXE = Path(axe_package.__file__).with_name("axe.min.js").read_text()


@asynccontextmanager
async def open_page(browser: Browser, **device: Any) -> AsyncIterator[Page]:
    """Open a page in a context of its own; an exception in its scripts fails the test."""
    context = await browser.new_context(reduced_motion="reduce", **(device or DESKTOP))
    page = await context.new_page()
    exceptions: list[str] = []
    page.on("pageerror", lambda error: exceptions.append(error.stack or str(error)))
    try:
        yield page
        assert exceptions == []
    finally:
        await context.close()


@asynccontextmanager
async def response_held(page: Page, path: str) -> AsyncIterator[asyncio.Event]:
    """Hold the response to the next request whose address ends with `path` until the block ends.

    Give the event that is set once the service has answered.
    """
    answered, released, delivered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        response = await route.fetch()
        answered.set()
        await released.wait()
        await route.fulfill(response=response)
        delivered.set()

    await page.route(f"**{path}", hold, times=1)
    yield answered
    released.set()
    await delivered.wait()


def page_url(service: Process, instance_id: str = "") -> str:
    return f"http://{service.rest_address}/-/ui/" + (f"#/instances/{instance_id}" if instance_id else "")


async def create_instance(service: Process, instance_id: str, **fields: object) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        answer = await rest.post("/", json={"prompt": "Build it", "id": instance_id, **fields})
        assert answer.status_code == 200, answer.text


async def get_instance(service: Process, instance_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        body: dict[str, Any] = (await rest.get(f"/{instance_id}", params={"view": "VIEW_FULL"})).json()
        return body["instance"]


async def expect_state(page: Page, state: str) -> None:
    await expect(page.locator(".identity .badge")).to_have_text(state)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


async def action_names(page: Page) -> list[str]:
    """The labels of the buttons that steer the instance shown."""
    return await page.locator(".actions > button").all_inner_texts()


def lane(page: Page, name: str) -> Locator:
    return page.locator(".lane").filter(has=page.locator(".title", has_text=re.compile(f"^{name}$")))


async def assert_fits_phone(page: Page) -> None:
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390


async def assert_accessible(page: Page) -> None:
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE)
    found = await page.evaluate("axe.run()")
    violations = [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]
    assert violations == []


async def evaluate_in_module(page: Page, address: str, name: str, body: str, *arguments: Any) -> Any:
    """Return the result of the JavaScript `body`; `m` is the module's exports, `a` the arguments."""
    await page.goto(address)
    script = f"async ([url, a]) => {{ const m = await import(url); {body} }}"
    return await page.evaluate(script, [f"{address}{name}", list(arguments)])
