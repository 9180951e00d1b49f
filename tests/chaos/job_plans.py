"""A stream of jobs by a seed: most succeed, some fail, are retried or cancelled; all of them are followed."""

from functools import partial
from random import Random
from typing import Any

import anyio
from msgspec import Struct

from schemas.job import Status
from tests.chaos.chaos_installation import ChaosInstallation
from tests.chaos.followers import follow_and_record, open_sse, open_websocket
from tests.chaos.recording_client import RecordingClient

SUBMIT_INTERVAL_S = (0.1, 0.9)
FOLLOWERS = {"sse": open_sse, "websocket": open_websocket}


class JobPlan(Struct, frozen=True):
    """One job. `input` is that of `stamped`.

    `impatient_s`: its first submit is dropped after that time. `cancel_s`: when it is cancelled. `retried`: its owner
    retries it unless it has succeeded. `by`: how it is followed.
    """

    name: str
    input: dict[str, Any]
    own_id: bool
    impatient_s: float | None
    cancel_s: float | None
    retried: bool
    by: str


def draw_job_plan(rng: Random, number: int) -> JobPlan:
    """Draw the next job."""
    name = f"job-{number}"
    input_: dict[str, Any] = {"text": name, "seconds": round(rng.uniform(0, 4), 2)}
    input_ |= rng.choice(({}, {}, {}, {"stumbles": 1}, {"refusals": 1}, {"refusals": 2}))
    return JobPlan(
        name=name,
        input=input_,
        own_id=rng.random() < 0.3,
        impatient_s=rng.uniform(0.001, 0.05) if rng.random() < 0.5 else None,
        cancel_s=rng.uniform(0, 5) if rng.random() < 0.2 else None,
        retried=rng.random() < 0.7,
        by=rng.choice(tuple(FOLLOWERS)),
    )


async def play_job_plan(chaos: ChaosInstallation, job: JobPlan) -> None:
    """Play a job from its submit to the last end that its owner waits for."""
    async with chaos.client(job.name) as client:
        submit = client.put if job.own_id else client.submit
        job_id = await submit(job.name, job.input, impatient_s=job.impatient_s)
        ended = await _watched(client, job, job_id, 1)
        if job.retried and ended is not Status.SUCCEEDED and await client.post_action(job_id, "retry"):
            await client.wait_for(job_id, lambda shown: shown.round > 1)
            ended = await _watched(client, job, job_id, 2)
        if ended is Status.SUCCEEDED:
            await client.fetch(await client.read_job(job_id), job.name)


async def _watched(client: RecordingClient, job: JobPlan, job_id: str, round_: int) -> Status:
    """Follow the job to the end of the round; return its status."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(follow_and_record, client, job_id, f"{job.name}, round {round_}", FOLLOWERS[job.by]))
        if job.cancel_s is not None and round_ == 1:
            await anyio.sleep(job.cancel_s)
            await client.post_action(job_id, "cancel")
        ended = await client.wait_until_ended(job_id)
    return ended.status
