"""An installation of real processes, and Chromium in front of its console."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec import Struct
from playwright.async_api import Browser

from tests.support.browser import WatchedPage, open_browser, open_page
from tests.support.installation import RunningInstallation, run_new_installation

# Before any script of the page: whatever its policy refuses is kept for the test.
WATCH_POLICY = """
window.policyReports = [];
document.addEventListener("securitypolicyviolation", (event) => {
  policyReports.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


class Console(Struct, frozen=True):
    """A running installation with an edge and no runner, and a browser."""

    running: RunningInstallation
    browser: Browser

    @property
    def url(self) -> str:
        return self.running.installation.url

    @asynccontextmanager
    async def open_page(
        self, owner: str | None = "ann", path: str = "", **options: object
    ) -> AsyncIterator[WatchedPage]:
        """Open a page at `#/<path>`, signed in with the owner's key. At its end the page must be without a fault."""
        async with open_page(self.browser, **{"locale": "en-GB", **options}) as watched:
            await watched.page.add_init_script(WATCH_POLICY)
            await watched.page.goto(self.url)
            if owner is not None:
                await watched.page.fill("#key", self.running.installation.keys[owner])
                await watched.page.click("form .primary")
                await watched.page.wait_for_selector("nav")
                if path:
                    await self.go(watched, path)
            yield watched
            assert await watched.page.evaluate("policyReports") == []
            assert watched.errors == []
            assert {url for url in watched.requests if not url.startswith((self.url, "blob:", "data:"))} == set()

    async def go(self, watched: WatchedPage, path: str) -> None:
        """Open another page of the console."""
        await watched.page.evaluate("(path) => { location.hash = `#/${path}`; }", path)


@pytest.fixture(scope="module")
async def browser(anyio_backend: object) -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
async def console(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> AsyncIterator[Console]:
    async with run_new_installation(tmp_path_factory.mktemp("console"), "process", None) as running:
        yield Console(running, browser)
        print(running.installation.tail())  # noqa: T201 - shown by pytest when a test failed
