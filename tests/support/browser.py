"""Debian's Chromium, driven by Playwright, for tests of what runs in a page.

`open_browser` starts it, `open_page` gives a page and what went wrong in it.
"""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Struct, field
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright, expect

from tests.support.wait import wait_for

# Playwright's own limit of 5 s is too short for a busy machine; its actions have one of 30 s.
expect.set_options(timeout=30_000)
PROGRAM = "chromium"
HOW = "install Debian's chromium"
# As root Chromium refuses to start with its own sandbox, and CI's containers have a /dev/shm of 64 MB.
# A camera and a microphone that Chromium makes up, and may use without asking.
FAKE_DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", *FAKE_DEVICES)


def require_browser() -> str:
    """Return the path of Chromium. Skip with the reason where it is missing; fail under REQUIRE_BROWSER=1."""
    path = shutil.which(PROGRAM)
    if path is not None:
        return path
    why = f"no {PROGRAM} is on PATH: {HOW}"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, but {why}", pytrace=False)
    pytest.skip(why)


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Run Chromium for the duration of the block."""
    path = require_browser()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


class WatchedPage(Struct, frozen=True):
    """A page. `errors`: uncaught errors and error messages of its console. `requests`: the URLs that it asked for."""

    page: Page
    context: BrowserContext
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def open_page(browser: Browser, **options: Any) -> AsyncIterator[WatchedPage]:
    """Open a page in a context of its own: no cookies, no storage. `options`: those of Playwright's new_context."""
    context = await browser.new_context(**options)
    watched = WatchedPage(await context.new_page(), context)

    def note_message(message: ConsoleMessage) -> None:
        if message.type == "error":
            watched.errors.append(message.text)

    def note_request(request: Request) -> None:
        watched.requests.append(request.url)

    watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
    watched.page.on("console", note_message)
    watched.page.on("request", note_request)
    try:
        yield watched
    finally:
        await context.close()


async def wait_in_page(page: Page, expression: str) -> None:
    """Wait until `expression` is true in the page. Playwright's own wait_for_function breaks a policy without eval."""

    async def holds() -> bool:
        return bool(await page.evaluate(expression))

    await wait_for(holds)
