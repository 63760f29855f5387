"""The page of a service that asks for tokens, in a real browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, expect
from support.endpoint import Endpoint
from support.page import assert_accessible, create_instance, expect_state, open_page, page_url
from support.process import Process, on_endpoint, process

from orchestrator.auth import token_file, tokens
from orchestrator.auth.caller import Role
from orchestrator.auth.token_file import Token


def new_token(file: Path, name: str, tenant: str, role: Role) -> str:
    text = tokens.generate()
    token_file.add(file, Token(name, tenant, role, tokens.digest(text), None, None))
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.toml"


@pytest.fixture(scope="module")
def token(file: Path) -> str:
    return new_token(file, "ann", "acme", Role.WRITE)


@pytest.fixture(scope="module")
async def service(file: Path, token: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    assert token
    folder = tmp_path_factory.mktemp("service")
    variables = {"ORCHESTRATOR_AUTH_TOKENS_FILE": str(file)}
    async with (
        Endpoint() as endpoint,
        process(folder, "up", **on_endpoint(endpoint.url), **variables) as running,
    ):
        yield running


async def sign_in(page: Page, token: str) -> None:
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()


async def test_a_person_signs_in_with_a_token_works_and_signs_out(
    service: Process, token: str, browser: Browser
) -> None:
    async with open_page(browser) as page:
        await page.goto(f"{page_url(service)}#/new")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(page.get_by_label("Token")).to_be_focused()
        await assert_accessible(page)
        await sign_in(page, token)
        await expect(page.locator(".caller")).to_contain_text("acme · write")
        await assert_accessible(page)

        (cookie,) = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Strict", -1)
        assert token not in await page.evaluate("document.cookie + JSON.stringify({...localStorage})")

        await page.get_by_label("Prompt").fill("Write a haiku")
        await page.get_by_role("button", name="Start").click()
        await expect_state(page, "Complete")
        await page.reload()
        await expect_state(page, "Complete")

        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(page.locator("body")).not_to_contain_text("Write a haiku")
        assert await page.context.cookies() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("orc_" + "0" * 72, "does not know this token"),
        ("nonsense", "does not know this token"),
        ("Grüße", "This is no token"),
    ],
)
async def test_a_wrong_token_is_said_to_be_wrong(
    service: Process, browser: Browser, wrong: str, said: str
) -> None:
    async with open_page(browser) as page:
        await page.goto(page_url(service))
        await sign_in(page, wrong)
        await expect(page.get_by_role("alert")).to_contain_text(said)
        assert await page.context.cookies() == []


async def test_a_session_whose_token_is_revoked_ends(service: Process, browser: Browser, file: Path) -> None:
    short = new_token(file, "bob", "acme", Role.READ)
    async with open_page(browser) as page:
        await page.goto(page_url(service))
        await sign_in(page, short)
        await expect(page.locator(".caller")).to_contain_text("acme · read")
        token_file.remove(file, "bob")
        async with httpx.AsyncClient(base_url=f"http://{service.rest_address}") as client:
            while (await client.get("/", headers={"authorization": f"Bearer {short}"})).status_code == 200:
                pass  # the file is read again within two seconds
        await page.reload()
        await expect(page.get_by_text("Your session has ended.")).to_be_visible()


async def test_another_tenants_instances_are_not_on_the_page(
    service: Process, browser: Browser, file: Path, token: str
) -> None:
    other = new_token(file, "eve", "other", Role.WRITE)
    async with httpx.AsyncClient(
        base_url=f"http://{service.rest_address}", headers={"authorization": f"Bearer {token}"}
    ) as client:
        created = await client.post("/", json={"prompt": "Acme's own", "id": "acmes"})
        assert created.status_code == 200, created.text
        while (await client.get("/", headers={"authorization": f"Bearer {other}"})).status_code == 401:
            pass  # the file is read again within two seconds
    async with open_page(browser) as page:
        await page.goto(page_url(service))
        await sign_in(page, other)
        await expect(page.locator(".caller")).to_contain_text("other · write")
        await expect(page.locator(".count")).to_be_visible()
        await expect(page.locator("body")).not_to_contain_text("Acme's own")
        await page.goto(page_url(service, "acmes"))
        await expect(page.locator("main")).not_to_contain_text("Acme's own")


async def test_where_nobody_signs_in_the_page_says_nothing_of_it(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as open_service,
        open_page(browser) as page,
    ):
        await create_instance(open_service, "a")
        await page.goto(page_url(open_service, "a"))
        await expect_state(page, "Complete")
        await expect(page.locator(".service summary")).to_be_visible()
        await expect(page.get_by_role("button", name="Sign out")).to_have_count(0)


async def test_only_pages_of_the_service_itself_may_call_one_that_asks_for_credentials(
    service: Process, token: str
) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}") as client:
        cookie = {"cookie": f"orchestrator_session={token}"}

        async def status(origin: str, host: str) -> int:
            headers = {**cookie, "origin": origin, "host": host}
            return (await client.post("/", json={"prompt": "x"}, headers=headers)).status_code

        own = service.rest_address
        assert await status(f"http://{own}", own) == 200
        for foreign in ("http://localhost:3000", "http://127.0.0.1:3000", "https://evil.example", "null"):
            assert await status(foreign, own) == 403
        # By any name, but without credentials nothing.
        named = {"host": "team.example.com"}
        assert (await client.get("/", headers=named)).status_code == 401
        assert (await client.get("/", headers={**named, **cookie})).status_code == 200
