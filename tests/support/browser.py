"""Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, async_playwright, expect

# On a busy machine a service takes seconds to start.
expect.set_options(timeout=20_000)

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser during the block. `make install` installs it; without it the tests fail."""
    executable = shutil.which("chromium")
    assert executable, "there is no chromium: make install, or apt-get install chromium"
    async with async_playwright() as playwright:
        # Chromium has no sandbox for root, which runs the tests on a bare machine.
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
