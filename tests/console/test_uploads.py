"""Files of a job that was submitted in the console: sent after the submit, cut, resumed, chosen again, refused."""

import hashlib
from pathlib import Path

from playwright.async_api import Page, expect

from lamplighter import AsyncClient
from schemas.job_view import JobView
from tests.console.conftest import Console
from tests.console.upload_gate import MIB, hold_uploads, uploaded_bytes


def write_film(path: Path) -> Path:
    """Write a file that is sent in several pieces, different for each test."""
    path.write_bytes(f"{path}".encode() + bytes(range(256)) * (6 * MIB // 256))
    return path


def digest_of(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


async def submit(page: Page, file: Path) -> None:
    """Choose the file in the form, and submit."""
    await page.set_input_files("input[type=file]", str(file))
    await expect(page.get_by_text("It is uploaded after you submit.")).to_be_visible()
    await page.get_by_role("button", name="Submit").click()


async def submit_without_file(client: AsyncClient, digest: str, **more: object) -> JobView:
    """Submit a job that waits for a file, without sending it."""
    body = {"endpoint": "echo", "input": {"file": digest}, "await_input": True, **more}
    return await client.job((await client._http.post("/v1/jobs", json=body)).json()["id"])


async def test_an_upload_goes_on_after_a_reload_of_the_page(console: Console, tmp_path: Path):
    file = write_film(tmp_path / "long.mp4")
    async with console.open_page(path="new?endpoint=echo") as watched, hold_uploads(watched.context) as gate:
        page = watched.page
        await submit(page, file)
        await expect(page.locator(".big")).to_have_text("Waiting for its input to be uploaded")
        assert await uploaded_bytes(page) == MIB
        await page.reload()
        assert await uploaded_bytes(page) == MIB, "it began anew"
        await console.go(watched, "jobs")
        gate.opened.set()
        await expect(page.locator(".rows").get_by_text("queued").first).to_be_visible(timeout=60_000)
        assert gate.offsets.count(0) == 1
        await console.go(watched, "new?endpoint=echo")
        await page.set_input_files("input[type=file]", str(file))
        await expect(page.get_by_text("Already there,")).to_be_visible(timeout=30_000)


async def test_of_two_tabs_one_sends_the_file_and_both_see_it_arrive(console: Console, tmp_path: Path):
    file = write_film(tmp_path / "tabs.mp4")
    async with console.open_page(path="new?endpoint=echo") as watched, hold_uploads(watched.context) as gate:
        await submit(watched.page, file)
        await uploaded_bytes(watched.page)
        second = await watched.context.new_page()
        await second.goto(watched.page.url)
        await expect(second.get_by_text("Another tab of this browser uploads the file")).to_be_visible()
        gate.opened.set()
        for page in (watched.page, second):
            await expect(page.locator(".big")).to_contain_text("No host that can run it has joined yet", timeout=60_000)
            await expect(page.get_by_text("Files to be uploaded")).to_be_hidden()
        assert gate.offsets.count(0) == 1


async def test_a_job_whose_page_was_closed_offers_to_continue_or_to_cancel(console: Console, tmp_path: Path):
    file, other = write_film(tmp_path / "face.mp4"), write_film(tmp_path / "other.mp4")
    kept, given_up = [await submit_without_file(console.running.ann, digest_of(file)) for _ in range(2)]
    async with console.open_page(path=f"jobs/{given_up.id}") as watched:
        page = watched.page
        await expect(page.get_by_text("Choose the same file again, or cancel the job.")).to_be_visible()
        await page.get_by_role("button", name="Cancel").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(page.locator(".big")).to_have_text("Cancelled")
        await expect(page.get_by_text("Choose the same file again")).to_be_hidden()

        await console.go(watched, f"jobs/{kept.id}")
        await page.get_by_label("Continue the upload of file").set_input_files(str(other))
        await expect(page.get_by_text("other.mp4 is another file than the file of this job.")).to_be_visible()
        await page.get_by_label("Continue the upload of file").set_input_files(str(file))
        await expect(page.locator(".big")).to_contain_text("No host that can run it has joined yet", timeout=60_000)


async def test_an_upload_that_is_stopped_can_go_on_and_ends_with_its_job(console: Console, tmp_path: Path):
    file = write_film(tmp_path / "stopped.mp4")
    async with console.open_page(path="new?endpoint=echo") as watched, hold_uploads(watched.context):
        page = watched.page
        await submit(page, file)
        await uploaded_bytes(page)
        await page.get_by_role("button", name="Stop the upload").click()
        await page.reload()
        await page.get_by_label("Continue the upload of file").set_input_files(str(file))
        assert await uploaded_bytes(page) == MIB, "it began anew"
        await page.get_by_role("button", name="Cancel").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(page.locator(".big")).to_have_text("Cancelled")
        await expect(page.get_by_text("Uploading:")).to_be_hidden()
        assert await kept_names(page) == []


async def kept_names(page: Page) -> list[str]:
    """Return the names of the files that the browser keeps."""
    names: list[str] = await page.evaluate("""() => new Promise((resolve) => {
      indexedDB.open("lamplighter", 1).onsuccess = (event) => {
        const store = event.target.result.transaction("files").objectStore("files");
        store.getAllKeys().onsuccess = (found) => resolve(found.target.result);
      };
    })""")
    return names


async def test_a_file_that_came_too_late_is_uploaded_and_the_job_retried(console: Console, tmp_path: Path):
    file = write_film(tmp_path / "late.mp4")
    job = await submit_without_file(console.running.ann, digest_of(file), policy={"input_timeout_s": 1})
    async with console.open_page(path=f"jobs/{job.id}") as watched:
        page = watched.page
        await expect(page.locator(".big")).to_have_text("Failed", timeout=60_000)
        await expect(page.locator(".failure")).to_contain_text("upload the missing files, then retry the job")
        await page.get_by_label("Continue the upload of file").set_input_files(str(file))
        await expect(page.get_by_text("Uploaded, 6.3 MB")).to_be_visible(timeout=30_000)
        await page.get_by_role("button", name="Retry").click()
        await expect(page.locator(".big")).to_contain_text("No host that can run it has joined yet", timeout=30_000)


async def test_a_file_over_the_quota_is_refused_with_what_to_do(console: Console, tmp_path: Path):
    file = write_film(tmp_path / "large.mp4")
    async with console.open_page("kim", path="new?endpoint=echo") as watched:
        page = watched.page
        await submit(page, file)
        await expect(page.get_by_role("alert").filter(has_text="quota")).to_be_visible()
        await expect(page.get_by_role("button", name="Try again")).to_be_visible()
        await expect(page.locator(".big")).to_have_text("Waiting for its input to be uploaded")
        await page.get_by_role("button", name="Cancel").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(page.locator(".big")).to_have_text("Cancelled")
        watched.errors.clear()  # the browser reports the refusal
