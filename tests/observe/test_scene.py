"""Breaks what alerts are for. Each is found firing in a real Prometheus, told to a receiver, and in the edge's log.

When it is mended, it is gone from Prometheus, and the receiver and the log have its end. One installation of real
processes for all tests of this file. The rules are those of deploy/alert_rules.py with shorter times. No edge can tell
that it is down: only Prometheus does.
"""

import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from bus.nats import topology
from bus.server.process import NatsServer
from deploy.alert_rules import RULES
from deploy.dashboards import DASHBOARDS
from edge.core.clock import utc_now
from edge.core.installation import record_backup
from edge.server.certificate import CERTIFICATE_LIFETIME, load_or_create_certificate
from lamplighter import api
from lamplighter.api import JobFailed, Rejected
from schemas.container_protocol import ExitCode
from schemas.host import HostHeartbeat
from schemas.installation import AuditAction, Condition
from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES
from tests.broken.raw_publish import publish_raw
from tests.broken.small_streams import shrink_streams
from tests.observe.inbox import Inbox, run_inbox
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
    inbox: Inbox
    nvml: StubNvml
    environ: Mapping[str, str]
    runner_address: str

    @property
    def power(self) -> Path:
        """The file that exists while the machine gpu-2 has power."""
        return self.folder / "gpu-2-has-power"

    async def start_gpu_runner(self) -> None:
        """Start the runner of gpu-1, which sees the stub's GPU and answers metrics."""
        shown = {name: self.nvml.env[name] for name in ("LD_LIBRARY_PATH", "NVIDIA_STUB_STATE")}
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

    async def is_firing(self, condition: Condition) -> bool:
        return condition in await self.prometheus.firing()

    async def wait_until_known(self, condition: Condition, subject: str = "", **labels: str) -> None:
        """Wait until the alert fires with these labels, an operator was told, and the log of the edge says it."""
        await self.prometheus.wait_until_fires(condition, **labels)

        async def is_told() -> bool:
            return (condition, subject) in self.inbox.open_conditions() & self.open_in_log()

        is_told.__qualname__ = f"the notification and the log line of {condition} {subject}"
        await wait_for(is_told, timeout_s=STEP_TIMEOUT_S, interval_s=0.2)

    async def wait_until_calm(self) -> None:
        """Wait until no alert fires, and an operator and the log were told the end of all that was wrong."""
        await self.prometheus.wait_until_gone(*CALM)

        async def is_told() -> bool:
            return not self.inbox.open_conditions() | self.open_in_log()

        is_told.__qualname__ = "the end of all conditions"
        await wait_for(is_told, timeout_s=STEP_TIMEOUT_S, interval_s=0.2)

    def logged(self, name: str = "edge") -> Iterator[dict[str, Any]]:
        """Yield the log lines of an edge or a runner."""
        for line in (self.folder / f"{name}.log").read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)

    def open_in_log(self) -> set[tuple[Condition, str]]:
        """Return the conditions, with their subjects, that began by the log of the edge and have not ended."""
        found: set[tuple[Condition, str]] = set()
        for line in self.logged():
            change = {"condition_began": found.add, "condition_ended": found.discard}.get(line["event"])
            if change:
                change((Condition(line["condition"]), line["subject"]))
        return found

    async def audited(self, action: AuditAction, subject: str) -> list[dict[str, str]]:
        """Return the details of what the administrator did to a thing, in order, by the audit log."""
        page = await self.running.admin.call(api.get_json("/v1/audit", action=action, subject=subject))
        for event in page["events"]:
            assert event["by"] in self.running.installation.keys["admin"], event
            assert event["client"] == "127.0.0.1", event
        return [event["details"] for event in reversed(page["events"])]


def declare_host(folder: Path) -> str:
    """Return the settings of the host gpu-2, whose power the edge controls."""
    verbs = {
        verb: json.dumps([sys.executable, "-c", DRIVER_PROGRAM, str(folder / "gpu-2-has-power"), verb])
        for verb in ("on", "off", "state")
    }
    rules = "min_on = 0.5\nidle_after = 1.0\nboot_timeout = 8.0\nprice = { per_hour = 36.0 }\n"
    argv = "".join(f"{verb} = {words}\n" for verb, words in verbs.items())
    return f'[hosts.gpu-2]\ndriver = "command"\n{argv}{rules}'


def notify_settings(url: str) -> str:
    """Return the settings of a target that gets a message of every condition, as soon as it is found."""
    return f'[notify]\ninterval_s = 1\ncheck_every_s = 0.5\ntargets.ops = {{ url = "{url}" }}\n'


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    (folder / "nvml").mkdir()
    nvml = StubNvml(folder / "nvml", gpu0__utilization=50)
    program = "tests.observe.quick_program"
    installation = Installation(folder, "process", programs={"edge": program, "runner": program})
    installation.server = NatsServer(folder / "broker", store_bytes=STORE_BYTES)
    certificate = load_or_create_certificate(folder / "tls", ["127.0.0.1"], utc_now())
    async with AsyncExitStack() as stack:
        inbox = await stack.enter_async_context(run_inbox())
        (folder / "lamplighter.toml").write_text(declare_host(folder) + notify_settings(inbox.url))
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
        made = Scene(folder, running, prometheus, inbox, nvml, environ, runner_address)
        await made.start_gpu_runner()
        await made.set_power("off")  # or each job that no host offers would wake it
        yield made
        print(installation.tail())  # noqa: T201 - shown by pytest when a test failed


CALM = tuple(set(Condition) - {Condition.BACKUP_OLD})  # which fires until the first backup is made


@pytest.fixture(autouse=True)
async def calm(scene: Scene) -> AsyncIterator[None]:
    """Check that no alert fires before a test, and that what it has mended is gone after it."""
    await wait_until_ready(scene.running.ann)
    await scene.wait_until_calm()
    yield
    await scene.wait_until_calm()


async def test_a_backup_that_was_never_made_and_one_that_is_old(scene: Scene):
    await scene.prometheus.wait_until_fires(Condition.BACKUP_OLD)
    await record_backup(scene.running.bus.installation_constants, utc_now() - timedelta(days=3))
    await scene.wait_until_known(Condition.BACKUP_OLD)
    settings = write_settings(scene.folder / "prometheus", scene.running.installation.broker_settings("edge"))
    done = await run_lamplighter("backup", scene.folder / "kept.zip", "--config", settings)
    assert done.returncode == 0, done.stderr
    await scene.prometheus.wait_until_gone(Condition.BACKUP_OLD)


def count_starts(scene: Scene) -> int:
    return sum(line["event"] == "serving" and not line["tls"] for line in scene.logged())


async def test_an_edge_that_is_killed(scene: Scene):
    await scene.running.installation.edge.kill()
    await scene.prometheus.wait_until_fires(Condition.EDGE_DOWN)
    starts = count_starts(scene)
    await scene.running.installation.start_edge(**scene.environ)
    await wait_until_ready(scene.running.ann)
    assert count_starts(scene) == starts + 1


async def test_a_broker_that_is_stopped(scene: Scene):
    await scene.running.installation.server.stop()
    await scene.wait_until_known(Condition.BROKER_NOT_DURABLE)
    await scene.running.installation.server.start()
    await wait_until_ready(scene.running.ann)


async def test_a_store_that_is_filled(scene: Scene):
    names = count()
    while (await scene.running.bus.health.status()).used_share < 0.81:
        await publish_raw(scene.running, f"usage.job.ballast.{next(names)}.1", bytes(MIB // 2))
    await scene.wait_until_known(Condition.BROKER_STORE_FULL)
    assert await scene.running.bus.usage_log.delete_owner("ballast")


async def test_a_queue_that_grows_and_a_job_that_waits(scene: Scene):
    async def submit_until_it_fires() -> bool:
        await scene.submit_many(2, UNOFFERED)
        is_told = (Condition.QUEUE_GROWING, UNOFFERED) in scene.inbox.open_conditions()
        return is_told and await scene.is_firing(Condition.QUEUE_GROWING)

    await wait_for(submit_until_it_fires, timeout_s=STEP_TIMEOUT_S, interval_s=0.3)
    await scene.wait_until_known(Condition.WAIT_TOO_LONG, UNOFFERED, endpoint=UNOFFERED)
    await scene.cancel_all()


async def test_a_gpu_that_is_unhealthy(scene: Scene):
    scene.nvml.set(gpu0__retired_pending=1)
    await scene.wait_until_known(Condition.GPU_UNHEALTHY, "gpu-1", host="gpu-1")
    scene.nvml.set(gpu0__retired_pending=None)
    await scene.running.installation.runners["gpu-1"].stop()  # the machine is reset
    await scene.start_gpu_runner()


async def boot(scene: Scene) -> None:
    """Ask for power for gpu-2, and start its runner when it has power."""
    await scene.set_power("on")

    async def has_power() -> bool:
        return scene.power.exists()

    await wait_for(has_power, timeout_s=STEP_TIMEOUT_S)
    await scene.start_runner("gpu-2")


async def shut_down(scene: Scene, want: str) -> None:
    """Wait until the edge has taken the power of gpu-2, and end its runner."""
    await scene.set_power(want)

    async def has_no_power() -> bool:
        return not scene.power.exists()

    await wait_for(has_no_power, timeout_s=STEP_TIMEOUT_S)
    await scene.running.installation.runners["gpu-2"].stop()


async def test_a_host_that_does_not_boot_and_then_stays_on_without_work(scene: Scene):
    await scene.set_power("on")
    await scene.wait_until_known(Condition.WAKE_FAILED, "gpu-2", host="gpu-2")
    await scene.wait_until_known(Condition.HOST_FAULT, "gpu-2", host="gpu-2")
    scene.power.unlink()
    await scene.set_power("auto")  # acknowledges the fault
    await scene.prometheus.wait_until_gone(Condition.HOST_FAULT)
    await boot(scene)
    await scene.wait_until_known(Condition.HOST_IDLE, "gpu-2", host="gpu-2")
    await shut_down(scene, "auto")
    wanted = [details["want"] for details in await scene.audited(AuditAction.HOST_POWER_SET, "gpu-2")]
    assert wanted == ["off", "on", "auto", "on", "auto"]
    states = [line["state"] for line in scene.logged() if line["event"] == "power_state_changed"]
    assert {"waking", "fault", "online", "off"} <= set(states)


async def test_a_webhook_receiver_that_is_dead(scene: Scene):
    dead = anyio.Event()
    async with run_receiver(lambda _: Response(status_code=204 if dead.is_set() else 503)) as receiver:
        url = receiver.url.replace("files.test", "127.0.0.1")
        await scene.running.ann.submit("echo", text="hello", webhook=url, wait=True)
        await scene.wait_until_known(Condition.WEBHOOKS_DELAYED)
        dead.set()
        await scene.prometheus.wait_until_gone(Condition.WEBHOOKS_DELAYED)


async def test_a_certificate_that_ends_soon(scene: Scene):
    old = {name: (scene.folder / "tls" / name).read_bytes() for name in ("cert.pem", "key.pem")}
    aged = utc_now() - CERTIFICATE_LIFETIME + timedelta(days=10)
    made = load_or_create_certificate(scene.folder / "aged", ["127.0.0.1"], aged)
    for file in made:
        (scene.folder / "tls" / file.name).write_bytes(file.read_bytes())
    await scene.wait_until_known(Condition.CERTIFICATE_EXPIRING, "edge", server="edge")
    for name, content in old.items():
        (scene.folder / "tls" / name).write_bytes(content)


async def test_a_disk_that_is_filled(scene: Scene):
    require_mounts()
    ballast = scene.folder / "edge" / "ballast"
    ballast.write_bytes(bytes(int(0.93 * DISK_MIB) * MIB))
    await scene.wait_until_known(Condition.DISK_FULL, str(scene.folder / "edge"))
    ballast.unlink()


async def test_a_host_with_a_wrong_clock(scene: Scene):
    """Its heartbeat is written as a runner writes it: no process gets another clock here."""

    async def beat() -> bool:
        now = utc_now() - timedelta(hours=1)
        await scene.running.bus.heartbeats.put("slow", HostHeartbeat(host="slow", incarnation="1", at=now, since=now))
        is_told = (Condition.CLOCK_SKEW, "slow") in scene.inbox.open_conditions()
        firing = (await scene.prometheus.firing()).get(Condition.CLOCK_SKEW, ())
        return is_told and any(alert["host"] == "slow" for alert in firing)

    await wait_for(beat, timeout_s=STEP_TIMEOUT_S, interval_s=0.3)
    await scene.running.bus.heartbeats.delete("slow")


async def test_an_endpoint_whose_jobs_fail(scene: Scene):
    """The exit code blames the input, so no job is tried again."""

    async def fail_until_it_is_known() -> bool:
        jobs = [await scene.running.ann.submit("echo", behave="exit", exit=ExitCode.BAD_INPUT) for _ in range(4)]
        for job in jobs:
            with pytest.raises(JobFailed, match="bad_input"):
                await scene.running.ann.wait(job.id)
        is_told = (Condition.FAILURE_RATE, "echo") in scene.inbox.open_conditions()
        return is_told and await scene.is_firing(Condition.FAILURE_RATE)

    await wait_for(fail_until_it_is_known, timeout_s=STEP_TIMEOUT_S)
    assert any(str(line.get("error")).startswith("bad_input") for line in scene.logged("gpu-1"))


# The metrics of the dashboards that this installation cannot have. All queries of other metrics must have data.
WITHOUT_DATA: Mapping[str, str] = {
    "lamplighter_attempts_adopted_total": "no runner is killed while it runs a job",
    "lamplighter_job_gpu_seconds_total": "the endpoint asks for no GPU",
    "lamplighter_job_gpu_energy_joules_total": "the endpoint asks for no GPU",
    "lamplighter_runner_warm_hits_total": "warm containers are switched off in tests",
    "lamplighter_runner_warm_misses_total": "warm containers are switched off in tests",
}

AFTER_A_FAULT = {"lamplighter_wake_failures_total"}  # has data where the test of a host that does not boot has run


async def test_every_query_of_the_dashboards_has_data(scene: Scene):
    """A counter that begins with its first event has a rate from the second one on, so the work is done again."""
    began_at = time.time()
    await record_backup(scene.running.bus.installation_constants, utc_now())
    file = scene.folder / "input.txt"
    file.write_text("hello")
    failing = await scene.running.ann.submit("echo", behave="exit", exit=ExitCode.TRY_AGAIN)
    async with run_receiver() as receiver:
        for _ in range(2):
            await boot(scene)
            await work(scene, file, receiver.url.replace("files.test", "127.0.0.1"))
            await wait_until_online(scene)
            await shut_down(scene, "off")
    with pytest.raises(JobFailed):
        await scene.running.ann.wait(failing.id)

    async def only_the_expected_are_empty() -> bool:
        return await find_metrics_without_data(scene, began_at) - AFTER_A_FAULT == set(WITHOUT_DATA)

    try:
        await wait_for(only_the_expected_are_empty, timeout_s=STEP_TIMEOUT_S, interval_s=1)
    except TimeoutError:
        assert await find_metrics_without_data(scene, began_at) - AFTER_A_FAULT == set(WITHOUT_DATA)
        raise


async def wait_until_online(scene: Scene) -> None:
    async def is_online() -> bool:
        series = await scene.prometheus.query('lamplighter_host_power_state{host="gpu-2",state="online"} == 1')
        return bool(series)

    await wait_for(is_online, timeout_s=STEP_TIMEOUT_S, interval_s=0.3)


async def work(scene: Scene, file: Path, webhook: str) -> None:
    """Let a job be followed while it runs, submitted again, and refused."""
    ann = scene.running.ann
    again = {"idempotency_key": uuid4().hex}
    for _ in range(2):
        job = await ann.submit("echo", file=file, seconds=2, webhook=webhook, options=again)
    async for _ in ann.follow(job.id):
        pass
    with pytest.raises(Rejected):
        await ann.submit("echo", steps=-1)


async def find_metrics_without_data(scene: Scene, began_at: float) -> set[str]:
    """Return the metrics in whose queries the dashboards have no data since `began_at`; a query's first one."""
    now, empty = time.time(), set()
    for query in (query for board in DASHBOARDS for panel in board.panels for query in panel.queries):
        expression = query.expression.replace("$__rate_interval", "10s").replace("$__range", "5m")
        if not await scene.prometheus.has_values(expression, began_at, now):
            found = re.search(r"lamplighter_\w+", expression)
            assert found, expression
            empty.add(found[0])
    return empty
