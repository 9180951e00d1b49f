"""The console in a real browser: what a creator and an operator do with it, and what must not happen to them."""

import json
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from edge.core.clock import utc_now
from edge.http.routes.pages import read_console_file
from schemas.job import Job, Status
from tests.console.conftest import Console, open_console
from tests.console.films import check_playing, make_film
from tests.support.installation import ROOT
from tests.support.node_packages import MODULES_DIR, require_node_packages
from tests.support.stored_jobs import store_jobs
from tests.support.wait import wait_for

PAGES = ("new", "jobs", "hosts", "endpoints", "usage", "deliveries")
ADMIN_PAGES = ("owners", "access")
CONSOLE = ROOT / "edge" / "console"
SIZE_LIMIT_BYTES = 190_000  # as served
CROWD, WAITING_EVERY, RED_EVERY = 10_000, 10, 40
UNSPACED = re.compile(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]")
PAYLOADS = (
    "<script>window.taken = 1</script>",
    '"><img src=x onerror="window.taken = 1">',
    "<svg onload=window.taken=1>",
    "javascript:window.taken=1",
    "{{constructor.constructor('window.taken=1')()}}",
    "</pre><iframe srcdoc='<script>parent.taken=1</script>'></iframe>",
)


async def test_a_creator_uploads_a_film_while_the_host_is_off_and_watches_the_result(console: Console, tmp_path: Path):
    film = make_film(tmp_path / "face.mp4")
    async with console.open_page(path="endpoints") as watched:
        page = watched.page
        await expect(page.get_by_text("no host offers it now").first).to_be_visible()
        await console.go(watched, "new?endpoint=echo")
        await page.set_input_files("input[type=file]", str(film))
        await expect(page.get_by_text("It is uploaded after you submit.")).to_be_visible()
        await page.locator("summary", has_text="Options").click()
        await page.fill("[name=seconds]", "2")
        await page.get_by_role("button", name="Submit").click()
        await expect(page.locator(".big")).to_contain_text("No host that can run it has joined yet")
        runner = await console.running.installation.start_runner()
        try:
            await expect(page.locator(".bar")).to_be_visible(timeout=60_000)
            video = page.locator(".result video")
            await expect(video).to_be_visible(timeout=60_000)
            await expect(page.locator(".big")).to_have_text("Done")
            await expect(page.get_by_label("Log", exact=True)).to_contain_text("step 1 of 10")
            await check_playing(video)
        finally:
            await runner.stop()


async def test_a_video_is_recorded_with_the_camera(console: Console):
    async with console.open_page(path="new?endpoint=dub") as watched:
        page = watched.page
        field = page.locator(".field", has=page.locator("#field-video"))
        await field.get_by_role("button", name="Record a video").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Start recording").click()
        await expect(dialog).to_contain_text("Recording: 1", timeout=30_000)
        await dialog.get_by_role("button", name="Stop and use it").click()
        await expect(field.get_by_text("It is uploaded after you submit.")).to_be_visible(timeout=30_000)
        await check_playing(field.locator("video"))
        await field.get_by_role("button", name="Record a video").click()
        await dialog.get_by_role("button", name="Back").click()
        await expect(dialog).to_have_count(0)
        await expect(field.get_by_text("It is uploaded after you submit.")).to_be_visible()


async def test_a_camera_that_is_not_allowed_is_explained(console: Console):
    async with console.open_page(path="new?endpoint=dub") as watched:
        page = watched.page
        await page.evaluate(
            "() => { navigator.mediaDevices.getUserMedia = async () => "
            "{ throw new DOMException('Permission denied', 'NotAllowedError'); }; }"
        )
        await page.get_by_role("button", name="Record a voice").click()
        await expect(page.get_by_role("alert").filter(has_text="Permission denied")).to_contain_text("choose a file")


async def test_presets_keep_options_and_not_files(console: Console, tmp_path: Path):
    file = tmp_path / "note.txt"
    file.write_text("a file of this visit")
    async with console.open_page(path="new?endpoint=echo") as watched:
        page = watched.page
        options = page.locator("summary", has_text="Options")
        await page.set_input_files("input[type=file]", str(file))
        await options.click()
        await page.fill("[name=seconds]", "3")
        await page.select_option("[name=behave]", label="hang")
        await page.get_by_role("button", name="Save as preset").click()
        await page.get_by_role("dialog").get_by_label("Name").fill("slow")
        await page.get_by_role("dialog").get_by_role("button", name="Save").click()
        await page.fill("[name=seconds]", "9")
        await page.reload()
        await options.click()
        await expect(page.locator("[name=seconds]")).to_have_value("9")  # the draft
        await page.get_by_label("Presets").select_option("slow")
        await expect(page.locator("[name=seconds]")).to_have_value("3")
        await expect(page.locator("[name=behave]")).to_have_value('"hang"')
        kept = await page.evaluate("localStorage.getItem('presets:echo')")
        assert json.loads(kept) == {"slow": {"seconds": 3, "behave": "hang"}}
        await page.locator("details", has=options).get_by_role("button", name="Remove").click()
        await expect(page.get_by_label("Presets")).to_have_count(0)


async def test_an_open_page_survives_a_restart_of_the_edge(console: Console):
    installation = console.running.installation
    async with console.open_page(path="jobs") as watched:
        await expect(watched.page.locator(".title")).to_contain_text("Jobs")
        await installation.edge.stop()
        await expect(watched.page.locator(".banner")).to_contain_text("not reachable")
        await installation.start_edge()
        await expect(watched.page.locator(".banner")).to_be_hidden(timeout=60_000)
        job = await console.running.ann.submit("echo", text="after the restart")
        await expect(watched.page.get_by_role("link", name=job.id)).to_be_visible()
        watched.errors.clear()  # the browser reports each request that found no edge


async def test_two_tabs_show_the_same_job_and_a_cancel_in_one_shows_in_the_other(console: Console):
    job = await console.running.ann.submit("echo", text="two tabs")
    async with (
        console.open_page(path=f"jobs/{job.id}") as first,
        console.open_page(path="jobs?text=two+tabs") as second,
    ):
        row = second.page.locator(f"[data-id='{job.id}']")
        await expect(row).to_contain_text("queued")
        await first.page.get_by_role("button", name="Cancel").click()
        await first.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(first.page.locator(".big")).to_have_text("Cancelled")
        await expect(row).to_contain_text("cancelled")


async def test_many_jobs_are_cancelled_and_deleted_with_a_report(console: Console):
    jobs = [await console.running.ann.submit("echo", text=f"many-{number}") for number in range(5)]
    await console.running.ann.cancel(jobs[0].id)
    async with console.open_page(path="jobs?text=many-") as watched:
        page = watched.page
        await expect(page.locator(".rows .row")).to_have_count(5)
        await page.get_by_role("button", name="Cancel").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(page.locator("main summary").last).to_contain_text("5 of 5")
        await page.locator(".rows .row input").first.check()
        await expect(page.get_by_text("1 selected")).to_be_visible()
        await page.get_by_role("button", name="Delete").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.locator(".rows .row")).to_have_count(4)


async def test_markup_in_anything_that_a_client_chooses_does_nothing(console: Console):
    text = " ".join(PAYLOADS)
    tags = {f"t{number}": payload for number, payload in enumerate(PAYLOADS)}
    body = {"endpoint": "echo", "input": {"text": text}, "tags": tags}
    job = (await console.running.ann._http.post("/v1/jobs", json=body)).json()
    name = '"><img src=x onerror=window.taken=1>.txt'
    await console.running.ann.submit("echo", text=name)
    runner = await console.running.installation.start_runner()
    try:
        await console.running.ann.wait(job["id"])
        async with console.open_page(path=f"jobs/{job['id']}") as watched:
            await expect(watched.page.locator("details[open] pre")).to_contain_text(PAYLOADS[0])
            for path in ("jobs", "new", "hosts", f"jobs?text={PAYLOADS[0]}"):
                await console.go(watched, path)
                await expect(watched.page.locator("main h1, main .filters").first).to_be_visible()
            assert await watched.page.evaluate("window.taken") is None
    finally:
        await runner.stop()


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
async def test_every_page_is_there_in_both_languages_on_a_desk_and_on_a_phone(console: Console, language: str):
    for options in ({"viewport": {"width": 1280, "height": 800}}, {"viewport": {"width": 360, "height": 740}}):
        async with console.open_page("admin", locale=language, **options) as watched:
            for path in (*PAGES, *ADMIN_PAGES):
                await console.go(watched, path)
                heading = watched.page.locator("main h1").first
                await expect(heading).to_be_visible()
                assert bool(re.search("[\u4e00-\u9fff]", await heading.inner_text())) == (language == "zh-CN")
                wide = await watched.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, f"{path} is wider than the screen by {wide} px"


async def test_the_language_can_be_switched_and_is_kept(console: Console):
    async with console.open_page() as watched:
        await watched.page.get_by_role("button", name="中文").click()
        await expect(watched.page.get_by_role("link", name="新建任务")).to_be_visible()
        await watched.page.reload()
        await expect(watched.page.get_by_role("link", name="新建任务")).to_be_visible()


async def test_the_file_button_has_the_language_of_the_page_and_names_the_file(console: Console, tmp_path: Path):
    file = tmp_path / "face.bin"
    file.write_bytes(b"a face")
    async with console.open_page(path="new?endpoint=echo", locale="zh-CN") as watched:
        page = watched.page
        chooser = page.locator(".chooser")
        await expect(chooser).to_have_text("选择文件未选择文件")
        async with page.expect_file_chooser() as opened:
            await chooser.get_by_text("选择文件", exact=True).click()
        await (await opened.value).set_files(str(file))
        await expect(chooser).to_have_text("选择文件face.bin")
        await page.locator(".upload").get_by_role("button", name="移除").click()
        await expect(chooser).to_have_text("选择文件未选择文件")


async def test_an_endpoint_without_a_chinese_description_shows_the_english_one(console: Console):
    async with console.open_page(path="endpoints", locale="zh-CN") as watched:
        await expect(watched.page.get_by_text("原样返回收到的内容")).to_be_visible()
        await expect(watched.page.get_by_text("Takes what HeyGem takes")).to_be_visible()


async def test_no_page_has_a_serious_fault_for_people_who_use_a_screen_reader(console: Console):
    require_node_packages()
    axe = (MODULES_DIR / "axe-core" / "axe.min.js").read_text()
    job = await console.running.ann.submit("echo", text="accessible")
    waiting = {"endpoint": "echo", "input": {"file": f"sha256:{'0' * 64}"}, "await_input": True}
    lacking = (await console.running.ann._http.post("/v1/jobs", json=waiting)).json()["id"]
    faults: list[str] = []
    async with console.open_page(None) as signed_out:
        faults += await find_faults(signed_out.page, axe, "sign-in")
    async with console.open_page("ann") as watched:
        for path in (*PAGES, f"jobs/{job.id}", f"jobs/{lacking}"):
            await console.go(watched, path)
            await expect(watched.page.locator("main h1").first).to_be_visible()
            faults += await find_faults(watched.page, axe, path)
        await console.go(watched, "new?endpoint=dub")
        await watched.page.get_by_role("button", name="Record a video").click()
        faults += await find_faults_in_dialog(watched.page, axe, "recorder")
    async with console.open_page("admin", color_scheme="dark") as admin:
        for path in ADMIN_PAGES:
            await console.go(admin, path)
            await expect(admin.page.locator("main table").first).to_be_visible()
            faults += await find_faults(admin.page, axe, path)
        for path, button in (
            ("owners", "Delete ann"),
            ("access", "New key"),
            ("endpoints", "Pause"),
        ):
            await console.go(admin, path)
            await admin.page.get_by_role("button", name=button).first.click()
            faults += await find_faults_in_dialog(admin.page, axe, f"{path}: {button}")
    assert faults == []


async def find_faults_in_dialog(page: Page, axe: str, name: str) -> list[str]:
    """Return the faults of the page while its dialog is open, and close the dialog."""
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_be_visible()
    faults = await find_faults(page, axe, name)
    await dialog.get_by_role("button", name="Back").click()
    await expect(dialog).to_have_count(0)
    return faults


async def find_faults(page: Page, axe: str, name: str) -> list[str]:
    """Return what axe-core calls serious or critical."""
    await page.evaluate(axe)
    found = await page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{name}: {rule['id']}: {node['html'][:160]}"
        for rule in found
        if rule["impact"] in {"serious", "critical"}
        for node in rule["nodes"]
    ]


async def test_a_key_sees_only_what_it_may_do(console: Console):
    async with console.open_page("ann") as watched:
        labels = await watched.page.locator("nav a").all_inner_texts()
        assert "Keys" not in labels
        await console.go(watched, "hosts")
        await expect(watched.page.get_by_role("heading", name="Hosts")).to_be_visible()
        assert await watched.page.get_by_role("button", name="Add a host").count() == 0


async def test_a_revoked_key_ends_the_session(console: Console):
    created = await console.running.admin._http.post("/v1/keys", json={"owner": "eve", "name": "soon gone"})
    made = created.json()
    async with console.open_page(None) as watched:
        page = watched.page
        await page.fill("#key", made["key"])
        await page.click("form .primary")
        await page.wait_for_selector("nav")
        assert made["key"] not in json.dumps(await page.evaluate("({ ...localStorage, ...sessionStorage })"))
        assert await page.evaluate("document.cookie") == ""
        await console.running.admin._http.delete(f"/v1/keys/{made['id']}")
        await page.reload()
        await expect(page.locator("#key")).to_be_visible()
        watched.errors.clear()  # the stream was refused in between


async def test_a_sign_in_link_works_once_and_leaves_no_trace(console: Console):
    made = (await console.running.ann._http.post("/v1/session/tickets")).json()
    async with console.open_page(None) as watched:
        await watched.page.goto(f"{console.url}{made['path']}")
        await watched.page.reload()
        await expect(watched.page.locator("nav")).to_be_visible()
        assert made["ticket"] not in watched.page.url
    async with console.open_page(None) as again:
        await again.page.goto(f"{console.url}{made['path']}")
        await again.page.reload()
        await expect(again.page.locator("#key")).to_be_visible()
        again.errors.clear()  # the refusal of the used ticket


def crowd_job(number: int) -> Job:
    """Return a job of the owner `crowd`: one of 10 waits for its time, the others have ended; one of 40 is red."""
    now, waits = utc_now(), number % WAITING_EVERY == 0
    return Job(
        id=f"crowd-{number:05}",
        owner="crowd",
        endpoint="echo",
        pool="echo",
        input={"text": f"crowd {number}"},
        tags={"batch": "red"} if number % RED_EVERY == 0 else {},
        request_digest=f"{number:064x}",
        status=Status.SCHEDULED if waits else Status.CANCELLED,
        created_at=now,
        not_before=now + timedelta(days=365),
        finished_at=None if waits else now,
    )


async def scroll_to_end(page: Page, rows: int) -> None:
    """Scroll the list until it has so many rows."""
    viewport = page.locator(".viewport")

    async def has_all() -> bool:
        await viewport.evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
        return int(await viewport.get_attribute("aria-rowcount") or 0) >= rows

    await wait_for(has_all, timeout_s=120, interval_s=0.05)
    assert int(await viewport.get_attribute("aria-rowcount") or 0) == rows


async def act_on_all(page: Page, action: str, report: str) -> None:
    """Press a button for many jobs, confirm, and wait for the report."""
    await page.get_by_role("button", name=action).click()
    await page.get_by_role("dialog").get_by_role("button", name=action).click()
    await expect(page.locator("main summary").last).to_have_text(f"{action}: {report}", timeout=180_000)


@pytest.mark.long(45)
@pytest.mark.timeout(400)
async def test_ten_thousand_jobs_scroll_and_many_are_cancelled_and_deleted(console: Console):
    key = (await console.running.admin._http.post("/v1/keys", json={"owner": "crowd"})).json()["key"]
    await store_jobs(console.running.bus, map(crowd_job, range(CROWD)))
    red = CROWD // RED_EVERY
    async with open_console(console.browser, console.url, key, "jobs") as watched:
        page = watched.page
        await expect(page.locator(".rows .row").first).to_be_visible(timeout=30_000)
        await scroll_to_end(page, CROWD)
        await expect(page.get_by_role("link", name="crowd-00000")).to_be_visible()
        assert await page.locator(".rows .row").count() < 80, "only what is seen is drawn"

        await console.go(watched, "jobs?tag=batch:red")
        await scroll_to_end(page, red)
        await expect(page.get_by_text("All that match the filters")).to_be_visible()
        await act_on_all(page, "Cancel", f"{red} of {red}")
        await act_on_all(page, "Delete", f"{red} of {red}")
        await expect(page.get_by_text("No job matches these filters")).to_be_visible()

        await console.go(watched, "jobs")
        await page.get_by_role("button", name="Select all").click()
        await expect(page.locator(".rows .row input:checked:disabled").first).to_be_visible()
        await act_on_all(page, "Cancel", f"{CROWD - red} of {CROWD - red}")
        await expect(page.locator(".rows .row").first).to_contain_text("cancelled")
    counts = (await console.running.admin._http.get("/v1/owners/crowd")).json()
    assert (counts["jobs"], counts["unfinished"]) == (CROWD - red, 0)


def test_every_text_has_both_languages_and_the_same_values():
    shim = "globalThis.localStorage = { getItem: () => 'en', setItem() {} }; "
    script = shim + (CONSOLE / "text.js").read_text() + "\nconsole.log(JSON.stringify(TEXTS));"
    if shutil.which("node") is None:
        pytest.skip("no node is on PATH: install Debian's nodejs")
    told = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    texts = json.loads(told.stdout)
    values = re.compile(r"\{\w+\}")
    for key, pair in texts.items():
        assert len(pair) == 2, key
        assert all(pair), key
        assert sorted(values.findall(pair[0])) == sorted(values.findall(pair[1])), key
        assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]", pair[1]), (
            f"{key}: no space between scripts"
        )
    sources = "\n".join(file.read_text() for file in CONSOLE.rglob("*.js"))
    used = set(re.findall(r'\bt\("([\w ]+)"', sources))
    assert used <= set(texts), used - set(texts)


def test_the_console_is_small_and_names_no_other_host():
    files = [
        file for folder in (CONSOLE, ROOT / "clients" / "js" / "src") for file in folder.rglob("*") if file.is_file()
    ]
    shipped = [file for file in files if file.suffix in {".js", ".css", ".html", ".svg"}]
    names = [
        str(file.relative_to(CONSOLE)) if file.is_relative_to(CONSOLE) else f"client/{file.name}"
        for file in shipped
        if file.name != "types.js"
    ]
    loaded = [served for name in names if (served := read_console_file(name)) is not None]
    assert len(loaded) == len(names)
    assert sum(len(served.content) for served in loaded) <= SIZE_LIMIT_BYTES
    for file in shipped:
        found = set(re.findall(r"https?://[^\s\"'`)>]+", file.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, (file, found)
        assert "innerHTML" not in file.read_text(), file
