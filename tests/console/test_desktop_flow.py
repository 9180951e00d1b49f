"""The desktop flow in a browser: a submit powers the host on, the page sends what is missing, and the result plays.

The power driver is a command that starts and stops the runner, so nothing in the test does.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, expect

from tests.console.conftest import Console
from tests.console.films import check_playing, make_film, make_speech
from tests.console.upload_gate import MIB, hold_uploads, uploaded_bytes
from tests.e2e.power.switched_hosts import FAST_CLOCK_MODULE, HostPlan, SwitchedHost
from tests.support.bytecode import BYTECODE_ENVIRON
from tests.support.installation import HOST, ROOT, Installation, run_installation
from tests.support.wait import wait_for

pytestmark = [pytest.mark.long(40), pytest.mark.timeout(300)]
BOOT_S = 1.0
STATE_TIMEOUT_MS = 90_000


@pytest.fixture
async def desktop(tmp_path: Path, browser: Browser) -> AsyncIterator[Console]:
    """Run an edge whose only host is off, and was never on."""
    host = SwitchedHost(HOST, tmp_path / "switch")
    (tmp_path / "lamplighter.toml").write_text(host.declaration(boot_timeout=120.0))
    installation = Installation(tmp_path, "process", programs={"edge": FAST_CLOCK_MODULE})
    try:
        async with run_installation(installation) as running:
            options = ("--config", os.devnull, "--log-format", "json")
            argv = (sys.executable, "-m", FAST_CLOCK_MODULE, "runner", *options)
            environ = BYTECODE_ENVIRON | installation.runner_environ(HOST) | {"LAMPLIGHTER_PACE__PRESENCE_S": "0.5"}
            host.build(HostPlan(argv, environ, str(ROOT)))
            yield Console(running, browser)
            print(installation.tail())  # noqa: T201 - shown by pytest when the test failed
            host.plan(boot_s=0.0)
    finally:
        host.unplug()


async def wait_for_power(page: Page, state: str) -> None:
    await expect(page.locator(f"#host-{HOST} .title .pill")).to_have_text(state, timeout=STATE_TIMEOUT_MS)


async def press(page: Page, label: str) -> None:
    """Press a power button of the host, and confirm where the page asks."""
    await page.locator(f"#host-{HOST}").get_by_role("button", name=label, exact=True).click()
    if label != "Automatic":
        await page.get_by_role("dialog").get_by_role("button", name=label, exact=True).click()


@asynccontextmanager
async def hold_answer(context: BrowserContext, host: SwitchedHost) -> AsyncIterator[None]:
    """Hold the answer to a new job until the host was powered on: its notices come before the page of the job opens."""

    async def is_powered_on() -> bool:
        return host.calls == ["on"]

    async def answer_late(route: Route) -> None:
        if route.request.method != "POST":
            return await route.continue_()
        answer = await route.fetch()
        await wait_for(is_powered_on, timeout_s=STATE_TIMEOUT_MS / 1000)
        return await route.fulfill(response=answer)

    await context.route("**/v1/jobs", answer_late)
    yield
    await context.unroute("**/v1/jobs")


async def test_a_job_powers_the_host_on_and_its_result_plays(desktop: Console, tmp_path: Path):
    film, speech = make_film(tmp_path / "face.mp4"), make_speech(tmp_path / "speech.wav")
    await desktop.running.admin.upload(film)  # the edge has it already: only the speech is missing
    host = SwitchedHost(HOST, tmp_path / "switch")
    async with desktop.open_page("admin", path="hosts") as watched:
        page = watched.page
        await wait_for_power(page, "off")
        await press(page, "On")  # once, so that the edge knows what the host offers
        await wait_for_power(page, "on")
        await press(page, "Automatic")
        await wait_for_power(page, "off")
        host.plan(boot_s=BOOT_S)

        await desktop.go(watched, "new?endpoint=dub")
        await page.set_input_files("#field-video", str(film))
        await expect(page.get_by_text("Already there,")).to_be_visible()
        await page.set_input_files("#field-audio", str(speech))
        await expect(page.get_by_text("It is uploaded after you submit.")).to_be_visible()
        await page.locator("summary", has_text="Options").click()
        await page.fill("[name=seconds]", "4")
        async with hold_answer(watched.context, host), hold_uploads(watched.context) as gate:
            await page.get_by_role("button", name="Submit").click()
            await expect(page.locator(".big")).to_have_text(
                "Waiting for its input to be uploaded", timeout=STATE_TIMEOUT_MS
            )
            await expect(page.get_by_text("GPU is starting")).to_be_visible(timeout=STATE_TIMEOUT_MS)
            online = page.get_by_text("The GPU host is online and takes jobs").last
            await expect(online).to_be_visible(timeout=STATE_TIMEOUT_MS)
            assert await uploaded_bytes(page) == MIB
            await page.reload()
            assert await uploaded_bytes(page) == MIB, "it began anew"
            gate.opened.set()
            await expect(page.locator(".bar")).to_be_visible(timeout=STATE_TIMEOUT_MS)
            assert gate.offsets.count(0) == 1
        await expect(page.locator(".big")).to_have_text("Done", timeout=STATE_TIMEOUT_MS)
        await expect(page.get_by_label("Log", exact=True)).to_be_visible()
        await check_playing(page.locator(".result video"))
        assert host.calls[:1] == ["on"]

        await desktop.go(watched, "hosts")
        await wait_for_power(page, "off")
        assert host.calls == ["on", "off"]
