"""A stream of jobs by a seed: most succeed, some fail, stumble, are cancelled or retried; all of them are watched."""

from functools import partial
from random import Random
from typing import Any

import anyio
from msgspec import Struct

from schemas.words import Status
from tests.chaos.client import Client
from tests.chaos.follower import by_sse, by_websocket, follow
from tests.chaos.scene import Scene

EVERY_S = (0.1, 0.9)
WATCHED_BY = {"sse": by_sse, "websocket": by_websocket}


class Plan(Struct, frozen=True):
    """One job. `input` is what `stamped` is given.

    `impatient_s`: its first submit is dropped after that time. `cancel_s`: when it is cancelled. `retried`: its owner
    asks for another round when it has not succeeded. `by`: how it is followed.
    """

    name: str
    input: dict[str, Any]
    own_id: bool
    impatient_s: float | None
    cancel_s: float | None
    retried: bool
    by: str


def plan(dice: Random, number: int) -> Plan:
    """The next job."""
    name = f"job-{number}"
    given: dict[str, Any] = {"text": name, "seconds": round(dice.uniform(0, 4), 2)}
    given |= dice.choice(({}, {}, {}, {"stumbles": 1}, {"refusals": 1}, {"refusals": 2}))
    return Plan(
        name=name,
        input=given,
        own_id=dice.random() < 0.3,
        impatient_s=dice.uniform(0.001, 0.05) if dice.random() < 0.5 else None,
        cancel_s=dice.uniform(0, 5) if dice.random() < 0.2 else None,
        retried=dice.random() < 0.7,
        by=dice.choice(tuple(WATCHED_BY)),
    )


async def live(scene: Scene, job: Plan) -> None:
    """From the submit to the last end that its owner wants to see."""
    async with scene.client(job.name) as client:
        submit = client.put if job.own_id else client.submit
        job_id = await submit(job.name, job.input, impatient_s=job.impatient_s)
        ended = await _watched(client, job, job_id, 1)
        if job.retried and ended is not Status.SUCCEEDED and await client.ask(job_id, "retry"):
            await client.until(job_id, lambda shown: shown.round > 1)
            ended = await _watched(client, job, job_id, 2)
        if ended is Status.SUCCEEDED:
            await client.fetch(await client.see(job_id), job.name)


async def _watched(client: Client, job: Plan, job_id: str, round_: int) -> Status:
    """How it ended."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(follow, client, job_id, f"{job.name}, round {round_}", WATCHED_BY[job.by]))
        if job.cancel_s is not None and round_ == 1:
            await anyio.sleep(job.cancel_s)
            await client.ask(job_id, "cancel")
        ended = await client.ended(job_id)
    return ended.status
