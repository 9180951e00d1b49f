"""The client for JavaScript in a page of another origin, in Chromium, under a strict policy."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.clients.conftest import ClientWorld
from tests.support.browser import WatchedPage, open_browser, open_page, wait_in_page

MIB = 1024 * 1024

# Each of these runs in the page as the body of a function of `client`, `behindProxy`, `breakConnections` and `given`.
LOAD = """async ({ url, proxy, control, key }) => {
  const { Client } = await import("/index.js");
  window.client = new Client({ url, key });
  window.behindProxy = new Client({ url: proxy, key });
  window.breakConnections = () => fetch(control, { method: "POST", mode: "no-cors" });
  window.makeFile = (bytes, seed) => {
    const data = new Uint32Array(bytes / 4);
    for (let i = 0, x = seed; i < data.length; i++) data[i] = x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return new File([data], `face-${seed}.mp4`, { type: "video/mp4", lastModified: 1 });
  };
  window.stored = {
    get: (name) => localStorage.getItem(name),
    set: (name, value) => localStorage.setItem(name, value),
    delete: (name) => localStorage.removeItem(name),
  };
}"""


@pytest.fixture(scope="module")
async def browser(anyio_backend: object) -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture
async def page(browser: Browser, world: ClientWorld) -> AsyncIterator[WatchedPage]:
    async with open_page(browser) as watched:
        await load(watched, world)
        yield watched


async def load(watched: WatchedPage, world: ClientWorld) -> None:
    await watched.page.goto(world.page_url)
    places = {"url": world.url, "proxy": world.proxy_url, "control": world.control_url, "key": world.key}
    await watched.page.evaluate(LOAD, places)


async def test_a_job_with_a_file_from_the_submit_to_its_output(page: WatchedPage):
    told = await page.page.evaluate("""async () => {
      const file = new File(["hello\\n"], "hello.txt", { type: "text/plain" });
      const { id } = await client.submit("echo", { text: "hi", file, steps: 2 });
      const kinds = [];
      for await (const event of client.follow(id)) kinds.push(event.kind === "state" ? event.data.status : event.kind);
      const job = await client.wait(id);
      return { kinds, text: await (await client.download(job)).text(), url: await client.downloadUrl(id) };
    }""")
    assert told["kinds"][0] == "queued"
    assert "succeeded" in told["kinds"]
    assert {"progress", "log"} <= set(told["kinds"])
    assert told["text"] == "hello\n"
    assert "/files/file.txt?" in told["url"]
    assert page.errors == []


async def test_an_upload_that_is_cut_goes_on_and_its_digest_is_made_in_a_worker(page: WatchedPage):
    workers: list[str] = []
    page.page.on("worker", lambda worker: workers.append(worker.url))
    told: Any = await page.page.evaluate(
        """async ({ size }) => {
      const file = makeFile(size, 1), told = [];
      const isIn = (phase) => told.some((progress) => progress.phase === phase && progress.done >= 1 << 20);
      const sending = behindProxy.upload(file, { onProgress: (progress) => {
        if (progress.phase === "sending" && progress.done === 1 << 20 && !isIn("sending")) breakUntilLost();
        told.push(progress);
      } });
      const breakUntilLost = async () => { while (!isIn("waiting") && !isIn("done")) await breakConnections(); };
      const asset = await sending;
      const again = await client.upload(file);
      const own = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
      const hex = Array.from(new Uint8Array(own), (byte) => byte.toString(16).padStart(2, "0")).join("");
      return { told, asset, again, hex };
    }""",
        {"size": 24 * MIB},
    )
    assert workers
    assert workers[0].endswith("/hash-worker.js")
    assert told["asset"]["sha256"] == told["hex"]
    assert told["again"]["present"]
    phases = [progress["phase"] for progress in told["told"]]
    lost = phases.index("waiting")
    resumed = next(progress for progress in told["told"][lost:] if progress["phase"] == "sending")
    assert resumed["done"] >= MIB
    assert told["told"][-1] == {
        "phase": "done",
        "done": 24 * MIB,
        "total": 24 * MIB,
        "present": False,
        "bytesPerS": None,
    }


async def test_an_upload_goes_on_after_a_reload(page: WatchedPage, world: ClientWorld):
    await page.page.evaluate(
        """({ size }) => new Promise((resolve) => {
      client.upload(makeFile(size, 2), { store: stored, onProgress: ({ phase, done }) => {
        if (phase === "sending" && done > 0) resolve();
      } });
    })""",
        {"size": 24 * MIB},
    )
    await load(page, world)
    told: Any = await page.page.evaluate(
        """async ({ size }) => {
      const told = [];
      await client.upload(makeFile(size, 2), { store: stored, onProgress: (progress) => told.push(progress) });
      return { told, left: Object.keys(localStorage).filter((name) => name.startsWith("upload")) };
    }""",
        {"size": 24 * MIB},
    )
    assert "hashing" not in {progress["phase"] for progress in told["told"]}
    assert next(progress["done"] for progress in told["told"] if progress["phase"] == "sending") > 0
    assert told["left"] == []


async def test_a_stream_goes_on_after_the_network_was_away(page: WatchedPage):
    await page.page.evaluate("""async () => {
      const { id } = await client.submit("echo", { steps: 30, seconds: 6 });
      window.events = [];
      window.states = [];
      window.following = (async () => {
        for await (const event of behindProxy.follow(id, { onConnection: (state) => states.push(state) })) {
          events.push(event);
        }
      })();
    }""")
    is_running = "events.some(({ kind, data }) => kind === 'log' && data.text.includes('step 3 of'))"
    await wait_in_page(page.page, is_running)
    await page.context.set_offline(True)
    await page.page.evaluate("breakConnections().catch(() => null)")
    await wait_in_page(page.page, "!navigator.onLine")
    await page.context.set_offline(False)
    await page.page.evaluate("following")
    told: Any = await page.page.evaluate("({ events, states })")
    log = "".join(event["data"]["text"] for event in told["events"] if event["kind"] == "log")
    assert [line.split()[1] for line in log.splitlines()[1:]] == [str(step) for step in range(1, 31)]
    assert told["states"][0] == told["states"][-1] == "open"
    assert "lost" in told["states"]
    assert any(event["kind"] == "state" and event["data"]["status"] == "succeeded" for event in told["events"])


async def test_a_stream_that_the_proxy_cuts_goes_on(page: WatchedPage):
    told: Any = await page.page.evaluate("""async () => {
      const { id } = await client.submit("echo", { steps: 10, seconds: 2 });
      const texts = [], states = [];
      for await (const { kind, data } of behindProxy.follow(id, { onConnection: (state) => states.push(state) })) {
        if (kind !== "log") continue;
        texts.push(data.text);
        if (data.text.includes("step 4 of")) await breakConnections();
      }
      return { texts, states };
    }""")
    steps = [line.split()[1] for line in "".join(told["texts"]).splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 11)]
    assert told["states"] == ["open", "lost", "open"]


async def test_an_event_source_ends_after_the_last_event(page: WatchedPage):
    states: Any = await page.page.evaluate("""async () => {
      const { id } = await client.submit("echo", { steps: 1 });
      await client.wait(id);
      const { token } = await client.request("POST", "/v1/tokens", { json: { scopes: ["jobs:read"] } });
      const source = new EventSource(`${client.url}/v1/jobs/${id}/events?token=${token}`);
      const states = [];
      source.addEventListener("state", ({ data }) => states.push(JSON.parse(data).status));
      await new Promise((resolve) => { source.onerror = () => source.readyState === EventSource.CLOSED && resolve(); });
      return states;
    }""")
    assert states[-1] == "succeeded"
    assert states.count("succeeded") == 1


async def test_refusals_reach_the_page_with_their_fields(page: WatchedPage):
    told: Any = await page.page.evaluate("""async () => {
      const error = await client.submit("echo", { text: 5 }).catch((error) => error);
      const { name, status, code, errors } = error;
      return { name, status, code, errors };
    }""")
    assert (told["name"], told["status"], told["code"]) == ("Rejected", 422, "input_invalid")
    assert told["errors"][0]["path"] == "$.input.text"


async def test_the_reference_page_shows_every_operation_and_asks_no_other_host(browser: Browser, world: ClientWorld):
    async with open_page(browser) as watched:
        await watched.page.goto(f"{world.url}/docs#submitJob")
        await wait_in_page(watched.page, "document.querySelector('#submitJob')?.open")
        shown = await watched.page.evaluate("document.querySelectorAll('section details b').length")
        await watched.page.fill("#search", "cancelJob")
        found = await watched.page.evaluate(
            "[...document.querySelectorAll('details:not([hidden])')].map(({ id }) => id)"
        )
        named: Any = await watched.page.evaluate("fetch('/openapi.json').then((answer) => answer.json())")
        assert shown == sum(len(item) for item in named["paths"].values())
        assert found == ["cancelJob"]
        assert all(url.startswith(world.url) for url in watched.requests)
        assert watched.errors == []


async def test_the_reference_page_is_in_the_readers_language_and_can_be_switched(browser: Browser, world: ClientWorld):
    async with open_page(browser, locale="zh-CN") as watched:
        page = watched.page
        await page.goto(f"{world.url}/docs#submitJob")
        await expect(page.locator("#submitJob summary")).to_contain_text("提交任务")
        await expect(page.locator("#submitJob")).to_contain_text("错误响应")
        assert await page.evaluate("document.documentElement.lang") == "zh-CN"
        await page.fill("#search", "取消任务")
        await expect(page.locator("section details:not([hidden])")).to_have_count(1)
        await expect(page.locator("#cancelJob")).to_be_visible()
        await page.get_by_role("button", name="English").click()
        await expect(page.locator("#submitJob summary")).to_contain_text("Submit a job")
        await page.reload()
        await expect(page.get_by_role("button", name="中文")).to_be_visible()
        assert watched.errors == []
