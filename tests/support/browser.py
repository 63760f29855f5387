"""Real Chromium: Debian's, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, async_playwright, expect

# A busy machine starts a service in seconds, not at once.
expect.set_options(timeout=20_000)

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser while the block runs. `make install` brings it; without it the tests fail."""
    executable = shutil.which("chromium")
    assert executable, "there is no chromium: make install, or apt-get install chromium"
    async with async_playwright() as playwright:
        # Chromium refuses its sandbox to root, who runs the tests on a bare machine.
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
