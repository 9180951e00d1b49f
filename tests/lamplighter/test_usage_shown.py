"""`lamplighter usage` against a served edge."""

import json
import sys
from subprocess import CompletedProcess

import anyio

from edge.usage import job_usage
from schemas import events as e
from schemas.job import AttemptUsage, Claim, JobKey, Output
from tests.support.served_edge import ServedEdge


async def lamplighter(face: ServedEdge, owner: str, *words: str) -> CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "lamplighter", "usage", *words, "--url", face.url, "--key", face.texts[owner]]
    return await anyio.run_process(argv, check=False)


async def test_what_was_used_is_reported_to_people_and_to_programs(face: ServedEdge) -> None:
    nothing = await lamplighter(face, "ann")
    assert "no job has ended in this time" in nothing.stdout.decode()
    await face.ann.put("/v1/jobs/a", json={"endpoint": "echo", "input": {"text": "hello"}})
    key = JobKey("ann", "a")
    await face.world.write_event(key, e.Started(Claim("gpu-1", "i1", 1, "GPU-1")))
    done = await face.world.write_event(
        key, e.Succeeded(Output(), AttemptUsage(run_s=90.0, gpu_energy_j=36_000.0, cost=0.25))
    )
    await face.world.bus.usage_log.add(job_usage(done, 7))
    told = await lamplighter(face, "ann")
    assert told.returncode == 0
    lines = [line.split() for line in told.stdout.decode().splitlines()]
    assert ["echo", "1", "90", "s", "0.010", "kWh", "0.25", "CNY", "0.00"] in lines
    assert ["total", "1", "90", "s", "0.010", "kWh", "0.25", "CNY", "0.00"] in lines
    shown = json.loads((await lamplighter(face, "admin", "--owner", "ann", "--json")).stdout)
    assert (shown["owner"], shown["jobs"], shown["gpu_s"]) == ("ann", 1, 90.0)


async def test_a_time_that_is_none_and_anothers_usage_are_refused_in_one_line(face: ServedEdge) -> None:
    for words in (("--from", "yesterday"), ("--owner", "bob")):
        refused = await lamplighter(face, "ann", *words)
        assert refused.returncode == 4
        assert len(refused.stderr.strip().splitlines()) == 1
