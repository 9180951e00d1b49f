"""The steps of a job's life at which somebody is killed: which call of which port each is, and what is played."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from msgspec import Struct

from schemas.words import ACTIVE, Status
from tests.chaos import machine
from tests.chaos.client import Client
from tests.chaos.faults import Moment
from tests.chaos.follower import by_sse, by_websocket, follow
from tests.chaos.scene import Scene

PARTS = ("edge", "broker", "runner")
DOCKER = ("docker, live-restore", "docker, no live-restore")
JOB = ("process", "container")
ALL = (*PARTS, *DOCKER)
WITH_JOB = (*PARTS, *JOB, *DOCKER)
LONG_S = 60.0


class Cell(Struct, frozen=True):
    """One place of the matrix: kill `victim` just before or after `step`."""

    step: str
    moment: Moment
    victim: str

    @property
    def name(self) -> str:
        """As tests and tables call it, and the idempotency key of its job."""
        return f"{self.moment} {self.step}, {self.victim}"


Play = Callable[[Scene, Client, Cell], Awaitable[str]]


class Step(Struct, frozen=True):
    """`process` stands still at `point`. `victims`: of whom anything can be killed there.

    `switched`: the host has a switch, and a machine that starts its runner when it has power (tests/chaos/machine.py).
    """

    name: str
    process: str
    point: str
    play: Play
    victims: tuple[str, ...] = ALL
    switched: bool = False


async def plain(_: Scene, client: Client, cell: Cell, seconds: float = 0.6) -> str:
    """A job from its submit to its result."""
    job_id = await client.submit(cell.name, {"text": cell.name, "seconds": seconds})
    await _watched(client, job_id, cell)
    await client.fetch(await client.see(job_id), cell.name)
    return job_id


async def lasting(scene: Scene, client: Client, cell: Cell) -> str:
    """The same, still at work when a daemon that was killed has started again."""
    return await plain(scene, client, cell, seconds=5)


async def cancelled(_: Scene, client: Client, cell: Cell) -> str:
    """A job that its owner stops while it runs."""
    job_id = await client.submit(cell.name, {"seconds": LONG_S})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watched, client, job_id, cell)
        await client.until(job_id, lambda job: job.progress is not None)
        await client.ask(job_id, "cancel")
    return job_id


async def withdrawn(scene: Scene, client: Client, cell: Cell) -> str:
    """A job that its owner stops while it waits: there is no runner meanwhile."""
    await scene.process("runner").stop()
    job_id = await client.submit(cell.name, {"text": cell.name})
    await client.ask(job_id, "cancel")
    if cell.victim != "runner":
        await scene.start_runner()
    await _watched(client, job_id, cell)
    return job_id


async def retried(_: Scene, client: Client, cell: Cell) -> str:
    """A job that fails, and succeeds in the round that its owner asks for."""
    job_id = await client.submit(cell.name, {"text": cell.name, "refusals": 1})
    await client.ended(job_id)
    await client.ask(job_id, "retry")
    await client.until(job_id, lambda job: job.round == 2)
    await _watched(client, job_id, cell)
    await client.fetch(await client.see(job_id), cell.name)
    return job_id


async def stumbled(_: Scene, client: Client, cell: Cell) -> str:
    """A job whose first attempt fails, and that is tried again without anybody asking."""
    job_id = await client.submit(cell.name, {"text": cell.name, "stumbles": 1})
    await _watched(client, job_id, cell)
    await client.fetch(await client.see(job_id), cell.name)
    return job_id


async def drained(scene: Scene, client: Client, cell: Cell) -> str:
    """A job that runs when its host is told to stop; a new life follows."""
    job_id = await client.submit(cell.name, {"text": cell.name, "seconds": 4})
    await client.until(job_id, lambda job: job.status in ACTIVE and job.progress is not None)
    scene.process("runner").terminate()
    if cell.victim != "runner":
        await scene.restart_runner()
    await _watched(client, job_id, cell)
    await client.fetch(await client.see(job_id), cell.name)
    return job_id


async def relit(scene: Scene, client: Client, cell: Cell) -> str:
    """A host that idles is put out, and lit again for a job."""
    await machine.dark(scene)
    return await plain(scene, client, cell)


async def _watched(client: Client, job_id: str, cell: Cell) -> None:
    """Followed both ways to its end, and read until it has ended."""
    async with anyio.create_task_group() as tasks:
        for way, by in (("sse", by_sse), ("websocket", by_websocket)):
            tasks.start_soon(partial(follow, client, job_id, f"{cell.name}, {way}", by))
        ended = await client.ended(job_id)
        assert ended.status in {Status.SUCCEEDED, Status.CANCELLED}, f"{cell.name}: {ended.status} {ended.error}"


STEPS = (
    Step("submit", "edge", "records.create.submitted", plain, PARTS),
    Step("publish", "edge", "queue.publish", plain, PARTS),
    Step("claim", "runner", "records.update.started", plain),
    Step("stage and start", "runner", "engine.start", plain),
    Step("progress", "runner", "feed.publish.progress", lasting, WITH_JOB),
    Step("upload", "runner", "supplies.keep", plain),
    Step("store", "edge", "store.write", plain, PARTS),
    Step("record", "runner", "records.update.succeeded", plain),
    Step("ack", "runner", "delivery.done", plain),
    Step("remove", "runner", "engine.remove", plain),
    Step("release", "runner", "records.update.released", stumbled),
    Step("back-off", "runner", "delivery.later", stumbled),
    Step("cancel, waiting", "edge", "queue.withdraw", withdrawn, ("edge", "broker")),
    Step("cancel, running", "edge", "records.update.cancel_requested", cancelled, WITH_JOB),
    Step("stop", "runner", "engine.stop", cancelled, WITH_JOB),
    Step("retry", "edge", "records.update.retried", retried, PARTS),
    Step("drain", "runner", "hosts.put.draining", drained, WITH_JOB),
    Step("power off", "edge", "driver.stop", relit, PARTS, switched=True),
    Step("power on", "edge", "driver.start", relit, ("edge", "broker"), switched=True),
)


def cells() -> list[Cell]:
    """The whole matrix, row by row."""
    return [Cell(step.name, moment, victim) for step in STEPS for moment in Moment for victim in step.victims]
