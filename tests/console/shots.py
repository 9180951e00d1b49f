"""Take the pictures of docs/console.md: `python -m tests.console.shots`. Each page in both languages, with a stub GPU.

The films in them are test patterns of ffmpeg: a committed picture shows no real person's face.
"""

import math
import subprocess
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec
from playwright.async_api import Browser, Page, expect

from edge.core.clock import utc_now
from edge.hosts.registry import HostGpuSample, HostSample
from tests.console.conftest import Console
from tests.console.upload_gate import MIB, hold_uploads
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid
from tests.support.browser import open_browser
from tests.support.installation import EDGE, HOST, ROOT, RunningInstallation, run_new_installation
from tests.support.wait import wait_for

FOLDER = ROOT / "docs" / "images"
LANGUAGES = {"en": "en-GB", "zh": "zh-CN"}
DESK = {"width": 1180, "height": 760}
PHONE = {"width": 390, "height": 844}


def require_chinese_font() -> None:
    """End with a message if no installed font has Chinese characters: Chromium would draw boxes instead of them."""
    if not subprocess.run(["fc-list", ":lang=zh-cn"], capture_output=True, check=True).stdout:
        raise SystemExit(
            "no font with Chinese characters is installed, so the Chinese pictures would show boxes: "
            "install one (on Debian: apt-get install fonts-noto-cjk)"
        )


def make_film(path: Path) -> Path:
    """Make a film of six seconds, with a tone."""
    sources = ("-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-f", "lavfi", "-i", "sine=frequency=330")
    codecs = ("-t", "6", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart")
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *sources, *codecs, str(path)], check=True)
    return path


def enlarge(film: Path, name: str) -> Path:
    """Return a copy of the film that is sent in several pieces, another file for each name."""
    large = film.with_name(f"{film.stem}-{name}.mp4")
    large.write_bytes(film.read_bytes() + name.encode() + bytes(8 * MIB))
    return large


async def use_gpu(gpus: StubNvml) -> None:
    """Let the stub's GPU look used: its load, temperature and draw rise and fall."""
    for step in range(1_000_000):
        share = (math.sin(step / 9) + 1) / 2
        gpus.set(
            gpu0__utilization=int(30 + 65 * share),
            gpu0__temperature=int(48 + 20 * share),
            gpu0__used_mb=int(3000 + 9000 * share),
            gpu0__power_mw=int(1000 * (90 + 260 * share)),
        )
        await anyio.sleep(0.5)


def write_samples(path: Path) -> None:
    """Write samples of a day, as an edge that has run so long would have: work by day, off in the night."""
    samples = []
    for number in range(287):
        at = utc_now() - timedelta(seconds=300 * (287 - number))
        share = max(0.0, math.sin(number / 25)) * (0.8 + 0.2 * math.sin(number * 2.4))
        gpu = HostGpuSample(
            uuid=gpu_uuid(0),
            utilization=int(96 * share),
            memory_used_mb=int(1800 + 11_000 * share),
            memory_total_mb=24_564,
            temperature_c=int(42 + 28 * share),
            power_w=40 + 350 * share,
        )
        if not 90 < number < 150:
            samples.append(HostSample(at, "online", int(share > 0), (gpu,)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode({HOST: {"24h": samples}}))


async def make_jobs(running: RunningInstallation, film: Path) -> tuple[str, str]:
    """Make jobs in every state; return a finished one with a film, and one that runs."""
    ann = running.ann
    done = await ann.submit("echo", file=str(film), text="a greeting", wait=True)
    await running.admin.pause_endpoint("echo")
    await running.admin.resume_endpoint("echo")
    failed = {"endpoint": "echo", "input": {"behave": "exit", "exit": 3}, "policy": {"max_attempts": 1}}
    await ann._http.post("/v1/jobs", json={**failed, "tags": {"project": "winter"}})
    await ann.submit("echo", text="not wanted any more")
    for number in range(4):
        await ann.submit("echo", text=f"greeting {number}", wait=True)
    await ann._http.post(
        "/v1/jobs", json={"endpoint": "echo", "input": {}, "not_before": "2099-01-01T06:00:00Z", "priority": "low"}
    )
    runs = await ann.submit("echo", file=str(film), seconds=600, steps=980)
    for number in range(3):
        await ann.submit("echo", text=f"next {number}", seconds=30)
    return done.id, runs.id


async def take(console: Console, done: str, runs: str) -> None:
    """Write one picture for each page and language."""
    pages = {
        "new": "new?endpoint=echo",
        "job": f"jobs/{done}",
        "running": f"jobs/{runs}",
        **{name: name for name in ("jobs", "usage")},
    }
    operator = {name: name for name in ("hosts", "endpoints", "access", "owners")}
    for language, locale in LANGUAGES.items():
        for owner, chosen in (("ann", pages), ("admin", operator)):
            async with console.open_page(owner, viewport=DESK, locale=locale) as watched:
                for name, path in chosen.items():
                    if owner == "admin":
                        await show_jobs_of(watched.page, "ann" if name == "hosts" else "")
                    await console.go(watched, path)
                    await settle(watched.page)
                    if name == "access":  # the other events show the paths of this machine
                        await watched.page.locator(".filters input[type=search]").fill("echo")
                        await watched.page.locator(".filters button").click()
                        await expect(watched.page.locator(".timeline li")).to_have_count(2)
                    await watched.page.screenshot(path=FOLDER / f"console-{name}-{language}.png")
        async with console.open_page("ann", viewport=PHONE, locale=locale, color_scheme="dark") as watched:
            await console.go(watched, f"jobs/{runs}")
            await settle(watched.page)
            await watched.page.screenshot(path=FOLDER / f"console-phone-{language}.png")


async def show_jobs_of(page: Page, owner: str) -> None:
    """Choose the owner whose jobs an admin sees. Empty: the admin's own."""
    await page.locator(".owner").fill(owner)
    await page.locator(".owner").press("Enter")


async def take_uploads(console: Console, film: Path) -> None:
    """Write the picture of a job whose file is under way, for each language."""
    for language, locale in LANGUAGES.items():
        large = enlarge(film, language)
        async with (
            console.open_page("ann", "new?endpoint=echo", viewport=DESK, locale=locale) as watched,
            hold_uploads(watched.context),
        ):
            await watched.page.set_input_files("input[type=file]", str(large))
            await watched.page.locator("form .primary:enabled").click()
            await expect(watched.page.locator("progress")).to_have_attribute("value", str(MIB))
            await settle(watched.page)
            await watched.page.screenshot(path=FOLDER / f"console-upload-{language}.png")


async def settle(page: Page) -> None:
    """Wait until the page has drawn what it loads, and its films have a first picture."""

    async def is_drawn() -> bool:
        return bool(
            await page.evaluate(
                "!document.querySelector('main > .empty') && Boolean(document.querySelector('main h1'))"
                " && [...document.querySelectorAll('video')].every((video) => video.readyState >= 2)"
            )
        )

    await wait_for(is_drawn)
    await anyio.sleep(1.2)  # the second drawing, with the history


def prepare(folder: Path) -> StubNvml:
    """Make the folders, the samples of a day, and the stub's GPU."""
    FOLDER.mkdir(exist_ok=True)
    folder.chmod(0o711)  # jobs run as another user
    (folder / "nvml").mkdir()
    write_samples(folder / EDGE / "host-samples.json")
    return StubNvml(folder / "nvml", gpu0__name="NVIDIA GeForce RTX 4090", gpu0__total_mb=24_564)


async def main() -> None:
    require_chinese_font()
    with TemporaryDirectory() as name:
        folder = Path(name)
        gpus = prepare(folder)
        env = {key: gpus.env[key] for key in ("LD_LIBRARY_PATH", "NVIDIA_STUB_STATE")}
        async with run_new_installation(folder, "process", None) as running, open_browser() as browser:
            await running.installation.start_runner(**env, LAMPLIGHTER_GPU__WATCH="1", LAMPLIGHTER_SLOTS="1")
            await take_with_load(running, browser, gpus, make_film(folder / "portrait.mp4"))


async def take_with_load(running: RunningInstallation, browser: Browser, gpus: StubNvml, film: Path) -> None:
    """Take the pictures while the GPU is used."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use_gpu, gpus)
        done, runs = await make_jobs(running, film)
        await take(Console(running, browser), done, runs)
        await take_uploads(Console(running, browser), film)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
