"""The console at other places: behind the reverse proxy of docs/proxy.md, and where `[console] path` says."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from edge.console import ConsoleSettings
from edge.http.auth import SESSION_COOKIE
from tests.console.conftest import go, open_console, sign_in
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.reserved_ports import reserve_ports
from tests.support.reverse_proxies import Caddy, ReverseProxy, running_proxy
from tests.support.served_edge import serve_edge

TRUSTED = {"LAMPLIGHTER_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]'}


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[RunningInstallation]:
    """Run an edge that trusts the proxy of 127.0.0.1."""
    async with run_new_installation(tmp_path, "process", None, **TRUSTED) as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.fixture
def proxy(behind: RunningInstallation, tmp_path: Path) -> Iterator[ReverseProxy]:
    edge = "{}:{}".format(*behind.installation.edge_address)
    with reserve_ports(1) as (port,), running_proxy(Caddy, tmp_path / "proxy", port, edge) as made:
        yield made


async def test_behind_caddy_the_cookie_is_secure_events_are_live_and_files_arrive(
    behind: RunningInstallation, proxy: ReverseProxy, browser: Browser, tmp_path: Path
):
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(range(256)) * 4096 * 12)  # 12 MiB: more than one piece of an upload
    async with open_console(browser, proxy.url, None, ignore_https_errors=True) as watched:
        page = watched.page
        await sign_in(watched, behind.installation.keys["ann"])
        (cookie,) = [one for one in await watched.context.cookies() if one["name"] == SESSION_COOKIE]
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
        await go(watched, "new?endpoint=echo")
        await page.set_input_files("input[type=file]", str(file))
        await expect(page.get_by_text("It is uploaded after you submit.")).to_be_visible(timeout=30_000)
        await page.get_by_role("button", name="Submit").click()
        await expect(page.get_by_role("heading", name="Timeline")).to_be_visible(timeout=30_000)  # the job's page
        await go(watched, "jobs")
        await expect(page.locator(".rows").get_by_text("queued")).to_be_visible(timeout=60_000)  # its file is there
        job = await behind.ann.submit("echo", text="by another client")
        row = page.locator(f"[data-id='{job.id}']")
        await expect(row).to_contain_text("queued", timeout=30_000)
        await behind.ann.cancel(job.id)
        await expect(row).to_contain_text("cancelled", timeout=30_000)
        await page.reload()
        await expect(row).to_be_visible()


async def test_a_console_that_was_moved_signs_in_by_its_link_and_keeps_its_pages(browser: Browser, tmp_path: Path):
    async with serve_edge(tmp_path, console=ConsoleSettings(path="/ui")) as edge:
        made = (await edge.ann.post("/v1/session/tickets")).json()
        async with open_console(browser, edge.url + made["path"], None) as watched:
            await expect(watched.page.get_by_role("link", name="New job")).to_be_visible()
            assert watched.page.url.startswith(f"{edge.url}/ui#")
            await go(watched, "hosts")
            await watched.page.reload()
            await expect(watched.page.get_by_role("heading", name="Hosts")).to_be_visible()
