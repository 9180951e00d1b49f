"""The steps of a job's life at which a process is killed: the port call of each, and the scenario to play."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from msgspec import Struct

from schemas.job import ACTIVE_STATUSES, Status
from tests.chaos import switched_host
from tests.chaos.chaos_installation import SLOTS, ChaosInstallation
from tests.chaos.fault_points import CallSide
from tests.chaos.followers import follow_and_record, open_sse, open_websocket
from tests.chaos.recording_client import RecordingClient
from tests.chaos.weighted_endpoint import NAME as WEIGHTED
from tests.chaos.weighted_endpoint import close_endpoint, open_endpoint, upload_weights

PARTS = ("edge", "broker", "runner")
DOCKER = ("docker, live-restore", "docker, no live-restore")
JOB = ("process", "container")
ALL = (*PARTS, *DOCKER)
WITH_JOB = (*PARTS, *JOB, *DOCKER)
LONG_S = 60.0


class CrashCell(Struct, frozen=True):
    """One cell of the matrix: kill `victim` just before or after `step`."""

    step: str
    moment: CallSide
    target: str

    @property
    def name(self) -> str:
        """The name in tests and tables, and the idempotency key of the job."""
        return f"{self.moment} {self.step}, {self.target}"


StepPlay = Callable[[ChaosInstallation, RecordingClient, CrashCell], Awaitable[str]]


class CrashStep(Struct, frozen=True):
    """`process` stops at `point`. `victims`: what can be killed there.

    `switched`: the host has a power switch, and starts its runner when it has power (tests/chaos/switched_host.py).
    """

    name: str
    process: str
    point: str
    play: StepPlay
    targets: tuple[str, ...] = ALL
    switched: bool = False


async def play_plain(_: ChaosInstallation, client: RecordingClient, cell: CrashCell, seconds: float = 0.6) -> str:
    """Run a job from its submit to its result."""
    job_id = await client.submit(cell.name, {"text": cell.name, "seconds": seconds})
    await _watched(client, job_id, cell)
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_long(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run a job that is still running when a killed daemon has restarted."""
    return await play_plain(chaos, client, cell, seconds=5)


async def play_reused(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run a job in a container that has run another one. The container is allowed two jobs, so it goes after both.

    If the second job starts again elsewhere, that container goes when it is too old.
    """
    first = await client.submit(f"{cell.name}, first", {"text": "first"}, endpoint="reused")
    assert (await client.wait_until_ended(first)).status is Status.SUCCEEDED
    await chaos.wait_for_kept_container()
    job_id = await client.submit(cell.name, {"text": cell.name, "seconds": 4}, endpoint="reused")
    await _watched(client, job_id, cell)
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_next_in_hand(_: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run two jobs one after the other in a container, on the only slot that no other job has.

    The message of the second one is fetched while the end of the first one is recorded.
    """
    for number in range(SLOTS - 1):
        other = await client.submit(f"{cell.name}, other {number}", {"text": "other", "seconds": 8})
        await client.wait_for(other, lambda job: job.status in ACTIVE_STATUSES)
    first = await client.submit(f"{cell.name}, first", {"text": "first", "seconds": 1}, endpoint="reused")
    job_id = await client.submit(cell.name, {"text": cell.name}, endpoint="reused")
    await _watched(client, job_id, cell)
    assert (await client.wait_until_ended(first)).status is Status.SUCCEEDED
    await client.fetch(await client.read_job(first), "first")
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_filled(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell, seconds: float = 0.6) -> str:
    """Run a job whose volume is filled while it waits, and that has a cache."""
    await close_endpoint(chaos.installation.folder, chaos.bus)
    digests = await upload_weights(chaos.admin, cell.name)
    job_id = await client.submit(cell.name, {"text": cell.name, "seconds": seconds}, endpoint=WEIGHTED)
    await open_endpoint(chaos.installation.folder, digests)
    await _watched(client, job_id, cell)
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_long_filled(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run such a job, which is still running when a killed daemon has restarted."""
    return await play_filled(chaos, client, cell, seconds=5)


async def play_cancel_running(_: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Cancel a job while it runs."""
    job_id = await client.submit(cell.name, {"seconds": LONG_S})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watched, client, job_id, cell)
        await client.wait_for(job_id, lambda job: job.progress is not None)
        await client.post_action(job_id, "cancel")
    return job_id


async def play_cancel_waiting(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Cancel a job while it waits; no runner is there meanwhile."""
    await chaos.process("runner").stop()
    job_id = await client.submit(cell.name, {"text": cell.name})
    await client.post_action(job_id, "cancel")
    if cell.target != "runner":
        await chaos.start_runner()
    await _watched(client, job_id, cell)
    return job_id


async def play_owner_retry(_: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run a job that fails, and that its owner retries with success."""
    job_id = await client.submit(cell.name, {"text": cell.name, "refusals": 1})
    await client.wait_until_ended(job_id)
    await client.post_action(job_id, "retry")
    await client.wait_for(job_id, lambda job: job.round == 2)
    await _watched(client, job_id, cell)
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_automatic_retry(_: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run a job whose first attempt fails, and that is retried automatically."""
    job_id = await client.submit(cell.name, {"text": cell.name, "stumbles": 1})
    await _watched(client, job_id, cell)
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_drain(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Run a job while its host drains; the host starts again."""
    job_id = await client.submit(cell.name, {"text": cell.name, "seconds": 4})
    await client.wait_for(job_id, lambda job: job.status in ACTIVE_STATUSES and job.progress is not None)
    chaos.process("runner").terminate()
    if cell.target != "runner":
        await chaos.restart_runner()
    await _watched(client, job_id, cell)
    await client.fetch(await client.read_job(job_id), cell.name)
    return job_id


async def play_power_cycle(chaos: ChaosInstallation, client: RecordingClient, cell: CrashCell) -> str:
    """Wait until the idle host is switched off, then run a job that starts it."""
    await switched_host.wait_until_off(chaos)
    return await play_plain(chaos, client, cell)


async def _watched(client: RecordingClient, job_id: str, cell: CrashCell) -> None:
    """Follow the job by SSE and by WebSocket to its end, and read it until it has ended."""
    async with anyio.create_task_group() as tasks:
        for way, by in (("sse", open_sse), ("websocket", open_websocket)):
            tasks.start_soon(partial(follow_and_record, client, job_id, f"{cell.name}, {way}", by))
        ended = await client.wait_until_ended(job_id)
        assert ended.status in {Status.SUCCEEDED, Status.CANCELLED}, f"{cell.name}: {ended.status} {ended.error}"


STEPS = (
    CrashStep("submit", "edge", "records.create.submitted", play_plain, PARTS),
    CrashStep("publish", "edge", "queue.publish", play_plain, PARTS),
    CrashStep("claim", "runner", "records.update.started", play_plain),
    CrashStep("stage and start", "runner", "engine.start", play_plain),
    CrashStep("progress", "runner", "feed.publish.progress", play_long, WITH_JOB),
    CrashStep("progress, reused", "runner", "feed.publish.progress", play_reused, WITH_JOB),
    CrashStep("fill: download", "runner", "source.download", play_filled, PARTS),
    CrashStep("fill: add file", "runner", "volumes.add", play_filled, ("runner",)),
    CrashStep("fill: assemble", "runner", "volumes.assemble", play_filled, ("runner",)),
    CrashStep("start with volume", "runner", "engine.start", play_filled, ("runner", *DOCKER)),
    CrashStep("progress, cache", "runner", "feed.publish.progress", play_long_filled, ("runner", *JOB, *DOCKER)),
    CrashStep("upload", "runner", "supplies.upload", play_plain),
    CrashStep("store", "edge", "store.write", play_plain, PARTS),
    CrashStep("record", "runner", "records.update.succeeded", play_plain),
    CrashStep("record, reused", "runner", "records.update.succeeded", play_next_in_hand, PARTS),
    CrashStep("ack", "runner", "delivery.ack", play_plain),
    CrashStep("remove", "runner", "engine.remove", play_plain),
    CrashStep("release", "runner", "records.update.released", play_automatic_retry),
    CrashStep("back-off", "runner", "delivery.nak", play_automatic_retry),
    CrashStep("cancel, waiting", "edge", "queue.remove", play_cancel_waiting, ("edge", "broker")),
    CrashStep("cancel, running", "edge", "records.update.cancel_requested", play_cancel_running, WITH_JOB),
    CrashStep("stop", "runner", "engine.stop", play_cancel_running, WITH_JOB),
    CrashStep("retry", "edge", "records.update.retried", play_owner_retry, PARTS),
    CrashStep("drain", "runner", "hosts.put.draining", play_drain, WITH_JOB),
    CrashStep("power off", "edge", "driver.stop", play_power_cycle, PARTS, switched=True),
    CrashStep("power on", "edge", "driver.start", play_power_cycle, ("edge", "broker"), switched=True),
)


def cells() -> list[CrashCell]:
    """Return the whole matrix, row by row."""
    return [CrashCell(step.name, moment, target) for step in STEPS for moment in CallSide for target in step.targets]
