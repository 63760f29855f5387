from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page
from support.browser import chromium
from support.page import open_page
from support.staged_service import StagedService, staged


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[tuple[StagedService, str]]:
    """A service whose instances a test stages, and the address of its page."""
    async with staged() as running:
        yield running


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with open_page(browser) as opened:
        yield opened
