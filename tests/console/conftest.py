"""An installation of real processes, and Chromium in front of its console."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec import Struct
from playwright.async_api import Browser

from tests.support.browser import WatchedPage, open_browser, open_page
from tests.support.installation import RunningInstallation, run_new_installation

ALLOW_LOOPBACK = {"LAMPLIGHTER_OUTBOUND__ALLOW": '["127.0.0.1"]'}  # for webhooks to a receiver of the test
QUOTAS = "[owners.kim.quotas]\nbytes = 1_000_000\n"
# Before any script of the page: whatever its policy refuses is kept for the test.
WATCH_POLICY = """
window.policyReports = [];
document.addEventListener("securitypolicyviolation", (event) => {
  policyReports.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


@asynccontextmanager
async def open_console(
    browser: Browser, url: str, key: str | None, path: str = "", **options: object
) -> AsyncIterator[WatchedPage]:
    """Open the console at `url`, sign in with `key`, and go to `#/<path>`. At its end the page must be without a fault.

    `options`: those of Playwright's new_context.
    """
    async with open_page(browser, **{"locale": "en-GB", **options}) as watched:
        await watched.page.add_init_script(WATCH_POLICY)
        await watched.page.goto(url)
        if key is not None:
            await sign_in(watched, key)
            if path:
                await go(watched, path)
        yield watched
        assert await watched.page.evaluate("policyReports") == []
        assert watched.errors == []
        origin = "/".join(url.split("/")[:3])
        assert {asked for asked in watched.requests if not asked.startswith((origin, "blob:", "data:"))} == set()


async def sign_in(watched: WatchedPage, key: str) -> None:
    """Sign in with a key, and wait until the pages are offered."""
    await watched.page.fill("#key", key)
    await watched.page.click("form .primary")
    await watched.page.wait_for_selector("nav")


async def go(watched: WatchedPage, path: str) -> None:
    """Open another page of the console."""
    await watched.page.evaluate("(path) => { location.hash = `#/${path}`; }", path)


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
        """Open a page at `#/<path>`, signed in with the owner's key."""
        key = None if owner is None else await self.key_of(owner)
        async with open_console(self.browser, self.url, key, path, **options) as watched:
            yield watched

    async def key_of(self, owner: str) -> str:
        """Return a key of `owner`; one that the installation does not know gets a new one."""
        known = self.running.installation.keys.get(owner)
        return known or (await self.running.admin._http.post("/v1/keys", json={"owner": owner})).json()["key"]

    async def go(self, watched: WatchedPage, path: str) -> None:
        """Open another page of the console."""
        await go(watched, path)


@pytest.fixture(scope="module")
async def browser(anyio_backend: object) -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
async def console(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> AsyncIterator[Console]:
    folder = tmp_path_factory.mktemp("console")
    (folder / "lamplighter.toml").write_text(QUOTAS)
    async with run_new_installation(folder, "process", None, **ALLOW_LOOPBACK) as running:
        yield Console(running, browser)
        print(running.installation.tail())  # noqa: T201 - shown by pytest when a test failed
