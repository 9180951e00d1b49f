"""Breaks what alerts are for, and finds them firing in a real Prometheus, and gone when it is mended.

One installation of real processes for all tests of this file. The rules are those of deploy/alert_rules.py with
shorter times. The failure rate of an endpoint is not broken here: promtool plays it in test_alert_rules.py.
"""

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path

import anyio
import pytest
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from bus.nats import topology
from bus.server.process import NatsServer
from deploy.alert_rules import RULES
from edge.core.clock import utc_now
from edge.tls import CERTIFICATE_LIFETIME, load_or_create_certificate
from lamplighter import api
from schemas.host import HostHeartbeat
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES
from tests.broken.raw_publish import publish_raw
from tests.broken.small_streams import shrink_streams
from tests.observe.quick_thresholds import QUICK_THRESHOLDS
from tests.runner.gpu.stub_nvml import StubNvml
from tests.support.command import run_lamplighter, write_settings
from tests.support.installation import IMAGES, Installation, RunningInstallation, run_installation, wait_until_ready
from tests.support.prometheus_server import PrometheusServer, run_prometheus
from tests.support.reserved_ports import reserve_ports
from tests.support.small_disk import mount_small_disk, require_mounts, why_no_mounts
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver

pytestmark = [pytest.mark.long(8), pytest.mark.timeout(300)]

MIB = 1 << 20
STORE_BYTES = 24 * MIB
DISK_MIB = 64
UNOFFERED = "missing"  # an endpoint that no host offers
STEP_TIMEOUT_S = 60.0

QUICK_RULES = tuple(replace(rule, threshold=QUICK_THRESHOLDS[rule.condition]) for rule in RULES)

# The driver: `on` and `off` switch the power of a machine. The test starts the runner of a machine that boots.
DRIVER_PROGRAM = """
import pathlib, sys
power, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
if verb == "state":
    sys.exit(0 if power.exists() else 1)
power.touch() if verb == "on" else power.unlink(missing_ok=True)
"""


class Scene(Struct, frozen=True):
    """The installation with its Prometheus. `folder` has the files of the test."""

    folder: Path
    running: RunningInstallation
    prometheus: PrometheusServer
    cards: StubNvml
    environ: Mapping[str, str]
    runner_address: str

    @property
    def power(self) -> Path:
        """The file that exists while the machine gpu-2 has power."""
        return self.folder / "gpu-2-has-power"

    async def start_gpu_runner(self) -> None:
        """Start the runner of gpu-1, which sees the stub's GPU and answers metrics."""
        shown = {name: self.cards.env[name] for name in ("LD_LIBRARY_PATH", "NVIDIA_STUB_STATE")}
        watched = {"LAMPLIGHTER_GPU__WATCH": "1", "LAMPLIGHTER_METRICS__LISTEN": self.runner_address}
        await self.start_runner("gpu-1", **shown, **watched)

    async def start_runner(self, host: str, **environ: str) -> None:
        pace = {"LAMPLIGHTER_PACE__PRESENCE_S": "0.5", "LAMPLIGHTER_SLOTS": "4"}
        await self.running.installation.start_runner(host, endpoints=(IMAGES / "echo",), **pace, **environ)

    async def set_power(self, want: str) -> None:
        await self.running.admin.call(api.set_power("gpu-2", want, None))

    async def submit_many(self, number: int, endpoint: str) -> None:
        for _ in range(number):
            await self.running.ann.submit(endpoint)

    async def cancel_all(self) -> None:
        async for job in self.running.ann.jobs():
            if job.status in WAITING_STATUSES | ACTIVE_STATUSES:
                await self.running.ann.cancel(job.id)

    async def is_firing(self, condition: str) -> bool:
        return condition in await self.prometheus.firing()


def declare_host(folder: Path) -> str:
    """Return the settings of the host gpu-2, whose power the edge controls."""
    verbs = {
        verb: json.dumps([sys.executable, "-c", DRIVER_PROGRAM, str(folder / "gpu-2-has-power"), verb])
        for verb in ("on", "off", "state")
    }
    rules = "min_on = 0.5\nidle_after = 1.0\nboot_timeout = 3.0\nprice = { per_hour = 36.0 }\n"
    argv = "".join(f"{verb} = {words}\n" for verb, words in verbs.items())
    return f'[hosts.gpu-2]\ndriver = "command"\n{argv}{rules}'


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    (folder / "lamplighter.toml").write_text(declare_host(folder))
    (folder / "nvml").mkdir()
    cards = StubNvml(folder / "nvml", gpu0__utilization=50)
    program = "tests.observe.quick_program"
    installation = Installation(folder, "process", modules={"edge": program, "runner": program})
    installation.server = NatsServer(folder / "broker", store_bytes=STORE_BYTES)
    certificate = load_or_create_certificate(folder / "tls", ["127.0.0.1"], utc_now())
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(topology, "STREAMS", shrink_streams())
        tls_port, runner_port = stack.enter_context(reserve_ports(2))
        environ = {
            "LAMPLIGHTER_PUBLIC__LISTEN": f"127.0.0.1:{tls_port}",
            "LAMPLIGHTER_PUBLIC__CERT": str(certificate.cert),
            "LAMPLIGHTER_PUBLIC__KEY": str(certificate.key),
            "LAMPLIGHTER_OUTBOUND__ALLOW": '["127.0.0.1"]',
        }
        if why_no_mounts() is None:
            stack.enter_context(mount_small_disk(folder / "edge", DISK_MIB))
        running = await stack.enter_async_context(run_installation(installation, **environ))
        runner_address = f"127.0.0.1:{runner_port}"
        targets = {"lamplighter-edge": installation.url.removeprefix("http://"), "lamplighter-runner": runner_address}
        prometheus = await stack.enter_async_context(
            run_prometheus(folder / "prometheus", targets, installation.keys["admin"], QUICK_RULES)
        )
        made = Scene(folder, running, prometheus, cards, environ, runner_address)
        await made.start_gpu_runner()
        yield made
        print(installation.tail())  # noqa: T201 - shown by pytest when a test failed


CALM = tuple(rule.condition for rule in RULES if rule.condition != "backup_old")  # until the first backup is made


@pytest.fixture(autouse=True)
async def calm(scene: Scene) -> AsyncIterator[None]:
    """Check that no alert fires before a test, and that what it has mended is gone after it."""
    await wait_until_ready(scene.running.ann)
    await scene.prometheus.wait_until_gone(*CALM)
    yield
    await scene.prometheus.wait_until_gone(*CALM)


async def test_a_backup_that_was_never_made(scene: Scene):
    await scene.prometheus.wait_until_fires("backup_old")
    settings = write_settings(scene.folder / "prometheus", scene.running.installation.broker_settings("edge"))
    done = await run_lamplighter("backup", scene.folder / "kept.zip", "--config", settings)
    assert done.returncode == 0, done.stderr
    await scene.prometheus.wait_until_gone("backup_old")


async def test_an_edge_that_is_killed(scene: Scene):
    await scene.running.installation.edge.kill()
    await scene.prometheus.wait_until_fires("edge_down")
    await scene.running.installation.start_edge(**scene.environ)
    await wait_until_ready(scene.running.ann)


async def test_a_broker_that_is_stopped(scene: Scene):
    await scene.running.installation.server.stop()
    await scene.prometheus.wait_until_fires("broker_not_durable")
    await scene.running.installation.server.start()
    await wait_until_ready(scene.running.ann)


async def test_a_store_that_is_filled(scene: Scene):
    names = count()
    while (await scene.running.bus.health.status()).used_share < 0.81:
        await publish_raw(scene.running, f"usage.job.ballast.{next(names)}.1", bytes(MIB // 2))
    await scene.prometheus.wait_until_fires("broker_store_full")
    assert await scene.running.bus.usage_log.delete_owner("ballast")


async def test_a_queue_that_grows_and_a_job_that_waits(scene: Scene):
    async def submit_until_it_fires() -> bool:
        await scene.submit_many(2, UNOFFERED)
        return await scene.is_firing("queue_growing")

    await wait_for(submit_until_it_fires, timeout_s=STEP_TIMEOUT_S, interval_s=0.3)
    await scene.prometheus.wait_until_fires("wait_too_long", endpoint=UNOFFERED)
    await scene.cancel_all()


async def test_a_gpu_that_is_unhealthy(scene: Scene):
    scene.cards.set(gpu0__retired_pending=1)
    await scene.prometheus.wait_until_fires("gpu_unhealthy", host="gpu-1")
    scene.cards.set(gpu0__retired_pending=None)
    await scene.running.installation.runners["gpu-1"].stop()  # the machine is reset
    await scene.start_gpu_runner()


async def test_a_host_that_does_not_boot_and_then_stays_on_without_work(scene: Scene):
    await scene.set_power("on")
    await scene.prometheus.wait_until_fires("wake_failed", host="gpu-2")
    await scene.prometheus.wait_until_fires("host_fault", host="gpu-2")
    scene.power.unlink()
    await scene.set_power("auto")  # acknowledges the fault
    await scene.prometheus.wait_until_gone("host_fault")
    await scene.set_power("on")

    async def has_power() -> bool:
        return scene.power.exists()

    await wait_for(has_power, timeout_s=STEP_TIMEOUT_S)
    await scene.start_runner("gpu-2")
    await scene.prometheus.wait_until_fires("host_idle", host="gpu-2")
    await scene.set_power("auto")

    async def has_no_power() -> bool:
        return not scene.power.exists()

    await wait_for(has_no_power, timeout_s=STEP_TIMEOUT_S)
    await scene.running.installation.runners["gpu-2"].stop()


async def test_a_webhook_receiver_that_is_dead(scene: Scene):
    dead = anyio.Event()
    async with run_receiver(lambda _: Response(status_code=204 if dead.is_set() else 503)) as receiver:
        url = receiver.url.replace("files.test", "127.0.0.1")
        await scene.running.ann.submit("echo", text="hello", webhook=url, wait=True)
        await scene.prometheus.wait_until_fires("webhooks_delayed")
        dead.set()
        await scene.prometheus.wait_until_gone("webhooks_delayed")


async def test_a_certificate_that_ends_soon(scene: Scene):
    old = {name: (scene.folder / "tls" / name).read_bytes() for name in ("cert.pem", "key.pem")}
    aged = utc_now() - CERTIFICATE_LIFETIME + timedelta(days=10)
    made = load_or_create_certificate(scene.folder / "aged", ["127.0.0.1"], aged)
    for file in made:
        (scene.folder / "tls" / file.name).write_bytes(file.read_bytes())
    await scene.prometheus.wait_until_fires("certificate_expiring", server="edge")
    for name, content in old.items():
        (scene.folder / "tls" / name).write_bytes(content)


async def test_a_disk_that_is_filled(scene: Scene):
    require_mounts()
    ballast = scene.folder / "edge" / "ballast"
    ballast.write_bytes(bytes(int(0.93 * DISK_MIB) * MIB))
    await scene.prometheus.wait_until_fires("disk_full")
    ballast.unlink()


async def test_a_host_with_a_wrong_clock(scene: Scene):
    """Its heartbeat is written as a runner writes it: no process gets another clock here."""

    async def beat() -> bool:
        now = utc_now() - timedelta(hours=1)
        await scene.running.bus.heartbeats.put("slow", HostHeartbeat(host="slow", incarnation="1", at=now, since=now))
        return any(alert["host"] == "slow" for alert in (await scene.prometheus.firing()).get("clock_skew", ()))

    await wait_for(beat, timeout_s=STEP_TIMEOUT_S, interval_s=0.3)
