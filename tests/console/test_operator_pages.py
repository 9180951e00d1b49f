"""What an operator does in the console: endpoints, deliveries, owners, hosts and keys."""

from pathlib import Path

from playwright.async_api import Browser, expect

from lamplighter import AsyncClient
from schemas.credentials import decode_join_token
from tests.console.conftest import Console, go, open_console
from tests.support.host_access import FakeHostAccess
from tests.support.served_edge import serve_edge
from tests.support.webhook_receiver import run_receiver, statuses_in_order


async def test_an_endpoint_shows_how_long_its_runs_take(console: Console):
    async with console.open_page(path="endpoints") as watched:
        await expect(watched.page.get_by_text("fewer than 3 runs have succeeded").first).to_be_visible()
    runner = await console.running.installation.start_runner()
    try:
        for number in range(3):
            await console.running.ann.submit("echo", text=f"run {number}", wait=True)
    finally:
        await runner.stop()
    async with console.open_page(path="endpoints") as watched:
        panel = watched.page.locator("section", has=watched.page.get_by_role("heading", name="echo", exact=True))
        await expect(panel).to_contain_text("(3 runs)")


async def test_an_endpoint_is_paused_and_resumed(console: Console):
    runner = await console.running.installation.start_runner()
    try:
        async with console.open_page("admin", path="endpoints") as watched:
            page = watched.page
            panel = page.locator("section", has=page.get_by_role("heading", name="echo", exact=True))
            await panel.get_by_role("button", name="Pause").click()
            await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
            await expect(panel).to_contain_text("Paused by boss at")
            job = await console.running.admin.submit("echo", text="it waits")
            await console.go(watched, f"jobs/{job.id}")
            await expect(page.locator(".big")).to_contain_text("boss paused this kind of job", timeout=30_000)
            await console.go(watched, "endpoints")
            await panel.get_by_role("button", name="Resume").click()
            await expect(panel.locator(".pill")).to_have_count(0)
            await console.running.admin.wait(job.id)
        async with console.open_page("ann", path="endpoints") as watched:
            await expect(watched.page.get_by_role("link", name="New job").last).to_be_visible()
            assert await watched.page.get_by_role("button", name="Pause").count() == 0
    finally:
        await runner.stop()


async def test_a_host_is_put_into_maintenance_and_back(browser: Browser, tmp_path: Path):
    async with serve_edge(tmp_path) as edge:
        await edge.world.announce_capabilities()
        await edge.world.send_heartbeat()
        job = (await edge.admin.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "hello"}})).json()
        async with open_console(browser, edge.url, edge.texts["admin"], "hosts") as watched:
            page = watched.page
            panel = page.locator("#host-gpu-1")
            await panel.get_by_role("button", name="Maintenance").click()
            await page.get_by_role("dialog").get_by_role("button", name="Maintenance").click()
            await expect(panel).to_contain_text("set by admin")
            await go(watched, f"jobs/{job['id']}")
            await expect(page.locator(".big")).to_contain_text("The GPU host is in maintenance", timeout=30_000)
            await go(watched, "endpoints")
            await expect(page.locator("main")).to_contain_text("gpu-1 – the host is in maintenance")
            await go(watched, "hosts")
            await panel.get_by_role("button", name="End maintenance").click()
            await expect(panel.locator(".note")).to_have_count(0)
            await edge.world.send_heartbeat("gpu-9")  # a host with a power driver
            for _ in range(2):
                await edge.services.power.tick()
            reason = page.locator("#host-gpu-9 dt", has_text="On because").locator("+ dd")
            await expect(reason).to_contain_text("It stays on until", timeout=30_000)


async def test_deliveries_of_all_jobs_are_listed_filtered_and_sent_again(console: Console):
    ann = console.running.ann
    async with run_receiver(statuses_in_order(410, 204)) as receiver:
        url = receiver.url.replace("files.test", "127.0.0.1")
        job = (await ann._http.post("/v1/jobs", json={"endpoint": "echo", "input": {}, "webhook": {"url": url}})).json()
        await receiver.wait_for_deliveries(1)
        async with console.open_page(path="deliveries") as watched:
            page = watched.page
            row = page.get_by_role("row", name=job["id"])
            await expect(row).to_contain_text("switched off by the receiver")
            await expect(row).to_contain_text("HTTP 410")
            await row.get_by_role("button").click()
            await receiver.wait_for_deliveries(2)
            await expect(row).to_contain_text("sent again 1 times on request", timeout=30_000)
            await expect(row.locator(".pill").first).to_have_text("sent", timeout=30_000)
            await page.select_option("select[name=state]", "failed")
            await expect(page.get_by_text("No delivery matches these filters")).to_be_visible()
            assert page.url.endswith("#/deliveries?state=failed")
            await console.go(watched, f"deliveries?url={url.split('/')[2]}")
            await expect(row).to_be_visible()
    assert {delivery.id for delivery in receiver.got} == {receiver.got[0].id}


async def test_an_owner_is_deleted_only_after_the_page_has_named_what_is_lost(console: Console, tmp_path: Path):
    admin = console.running.admin
    key = (await admin._http.post("/v1/keys", json={"owner": "zoe"})).json()["key"]
    file = tmp_path / "portrait.bin"
    file.write_bytes(b"p" * 2_000_000)
    async with AsyncClient(console.url, key, cache=tmp_path / "cache.json") as zoe:
        for number in range(3):
            await zoe.submit("echo", text=f"of zoe {number}", file=str(file))
    async with console.open_page("admin", path="owners") as watched:
        page = watched.page
        row = page.get_by_role("row").filter(has_text="zoe")
        await expect(row).to_contain_text("3 (3 not finished)")
        await row.get_by_role("button", name="Delete").click()
        dialog = page.get_by_role("dialog")
        for text in ("3 jobs with their results and logs", "3 are cancelled", "1 files, 2 MB", "1 API keys"):
            await expect(dialog).to_contain_text(text)
        await dialog.get_by_label("To confirm").fill("zo")
        await dialog.get_by_role("button", name="Delete").click()
        await expect(dialog).to_be_visible()
        assert (await admin._http.get("/v1/owners/zoe/deletion")).status_code == 404
        await dialog.get_by_label("To confirm").fill("zoe")
        await dialog.get_by_role("button", name="Delete").click()
        await expect(row).to_contain_text("3 jobs with their results and logs, 3 of them cancelled", timeout=60_000)
        assert (await admin._http.get("/v1/owners/zoe/deletion")).json()["erased"]["jobs"] == 3


async def test_a_host_is_added_with_a_token_that_is_shown_once_and_removed(browser: Browser, tmp_path: Path):
    async with serve_edge(tmp_path, FakeHostAccess()) as edge:
        options = {"permissions": ["clipboard-read", "clipboard-write"]}
        async with open_console(browser, edge.url, edge.texts["admin"], "hosts", **options) as watched:
            page, dialog = watched.page, watched.page.get_by_role("dialog")
            await page.get_by_role("button", name="Add a host").first.click()  # an empty list has one as well
            await dialog.get_by_label("Name of the host").fill("gpu-2")
            await dialog.get_by_role("button", name="Add a host").click()
            await expect(dialog).to_contain_text("Run this on gpu-2")
            command = await dialog.locator("pre").inner_text()
            token = decode_join_token(command.split()[-1])
            assert token.host == "gpu-2"
            await dialog.get_by_role("button", name="Copy").click()
            await expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
            assert await page.evaluate("navigator.clipboard.readText()") == command
            await dialog.get_by_role("button", name="Done").click()
            await expect(page.locator("dialog")).to_have_count(0)
            assert token.key not in await page.content()

            await edge.world.send_heartbeat("gpu-2")
            panel = page.locator("#host-gpu-2")
            await expect(panel).to_be_visible(timeout=30_000)
            await panel.get_by_role("button", name="Remove").click()
            await expect(dialog).to_contain_text("Its key stops working at once")
            await dialog.get_by_role("button", name="Back").click()
            await expect(panel).to_be_visible()
            await panel.get_by_role("button", name="Remove").click()
            await dialog.get_by_role("button", name="Remove").click()
            await expect(panel).to_have_count(0)
            assert await edge.keys.authenticate(token.key) is None


async def test_a_key_is_created_rotated_and_revoked(browser: Browser, tmp_path: Path):
    async with serve_edge(tmp_path) as edge, open_console(browser, edge.url, edge.texts["admin"], "access") as watched:
        page, dialog = watched.page, watched.page.get_by_role("dialog")

        async def read_secret() -> str:
            await expect(dialog).to_contain_text("This is shown only once")
            secret = await dialog.locator("pre").inner_text()
            await dialog.get_by_role("button", name="Done").click()
            await expect(page.locator("dialog")).to_have_count(0)
            assert secret not in await page.content()
            return secret

        async def works(secret: str) -> bool:
            reply = await edge.anyone.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
            return reply.status_code == 200

        await page.get_by_role("button", name="New key").click()
        await dialog.get_by_label("Owner").fill("carl")
        await dialog.get_by_label("Name").fill("studio")
        await dialog.get_by_label("assets:write").uncheck()
        await dialog.get_by_role("button", name="New key").click()
        first = await read_secret()
        row = page.get_by_role("row").filter(has_text="studio")
        await expect(row).to_contain_text("carl")
        await expect(row).not_to_contain_text("assets:write")
        assert await works(first)

        await row.get_by_role("button", name="Rotate").click()
        await dialog.get_by_role("button", name="Rotate").click()
        second = await read_secret()
        assert second != first
        assert await works(second)
        assert await works(first), "the old secret works for another 24 hours"

        await row.get_by_role("button", name="Revoke").click()
        await dialog.get_by_role("button", name="Back").click()
        assert await works(second)
        await row.get_by_role("button", name="Revoke").click()
        await dialog.get_by_role("button", name="Revoke").click()
        await expect(row).to_have_count(0)
        assert not await works(second)
        for action in ("key created", "key rotated", "key revoked"):
            await expect(page.locator(".timeline").get_by_text(action).first).to_be_visible()
        await page.get_by_label("Any action").select_option("key_rotated")
        await expect(page.locator(".timeline li")).to_have_count(1)
        await expect(page.locator(".timeline li")).to_contain_text("key rotated")
        await page.get_by_label("Id of key").fill("nothing")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator(".timeline li")).to_have_count(0)
