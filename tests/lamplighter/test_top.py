"""`lamplighter top` against a served edge."""

import json
import sys
from subprocess import CompletedProcess

import anyio

from schemas import events as e
from schemas.ids import JobKey
from schemas.job import Claim
from tests.support.served_edge import ServedEdge


async def top(url: str, key: str, *words: str) -> CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "lamplighter", "top", *words, "--url", url, "--key", key]
    return await anyio.run_process(argv, check=False)


async def test_hosts_and_living_jobs_are_reported_to_people_and_to_programs(face: ServedEdge) -> None:
    for name in ("waits", "runs", "gone"):
        await face.ann.put(f"/v1/jobs/{name}", json={"endpoint": "echo", "input": {"text": "hello"}})
    await face.ann.post("/v1/jobs/gone/cancel")
    await face.world.write_event(JobKey("ann", "runs"), e.Started(Claim("gpu-1", "i1", 1)))
    lines = (await top(face.url, face.texts["ann"])).stdout.decode().splitlines()
    assert [line.split()[0] for line in lines if " echo " in line and "hello" not in line][-2:] == ["runs", "waits"]
    shown = json.loads((await top(face.url, face.texts["ann"], "--json")).stdout)
    assert [(job["id"], job["status"]) for job in shown["jobs"]] == [("runs", "running"), ("waits", "queued")]
    assert isinstance(shown["hosts"], list)


async def test_without_a_server_it_ends_with_3() -> None:
    assert (await top("http://127.0.0.1:1", "x")).returncode == 3
