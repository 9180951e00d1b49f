"""Compare this tree with an older one: start of the edge, submit, memory of idle edge and runner.

    git worktree add OLD COMMIT && python -m bench.versions OLD [--rounds 9]

In each round both trees run the same steps, one right after the other, on the same broker version and with the same
packages; the tree that begins changes with the round. Prints the medians, and the median of the rounds' ratios
(this tree by the old one): a busy machine affects both trees of a round alike, so only the ratios say something.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import anyio
import uvloop

from bench.figures import Figure, p50, p99, print_figure
from bench.http_load import post_request, run_load
from lamplighter import AsyncClient
from tests.support.installation import HOST, ROOT, Installation, process_memory_mb, wait_until_ready
from tests.support.wait import wait_for

AIM = 1.05
BODY = b'{"endpoint":"echo","input":{"text":"hello"}}'
WARM_UP = 300
COUNTS = {1: 1000, 16: 3000}
IDLE_S = 5.0
UNITS = {"start": "s", "processor time": "ms", "p50": "ms", "p99": "ms", "memory": "MB"}

Measured = dict[str, float]


async def measure(tree: Path) -> Measured:
    """Return the figures of one installation whose edge and runner are those of `tree`."""
    endpoints = [tree / "images" / "echo"]  # an older release does not know newer fields of an endpoint.toml
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder), "process", programs={"edge": tree, "runner": tree})
        keys = await installation.open()
        try:
            began = time.monotonic()
            await installation.start_edge(endpoints)
            async with AsyncClient(installation.url, keys["ann"], cache=Path(folder) / "digests.json") as client:
                await wait_until_ready(client)
                found = {"edge: start until ready": time.monotonic() - began}
                await installation.start_runner(endpoints=endpoints)
                await _wait_until_online(client)
                await anyio.sleep(IDLE_S)
                found["edge: idle memory"] = process_memory_mb(installation.edge.pid)
                found["runner: idle memory"] = process_memory_mb(installation.runners[HOST].pid)
                await installation.runners[HOST].stop()  # its jobs would take part of the processor from the submits
            return found | await _measure_submits(installation, keys["ann"])
        finally:
            await installation.close()


async def _wait_until_online(client: AsyncClient) -> None:
    async def is_online() -> bool:
        return any(host.id == HOST and host.state == "online" for host in await client.hosts())

    await wait_for(is_online)


async def _measure_submits(installation: Installation, key: str) -> Measured:
    request = post_request("/v1/jobs", key, BODY)
    port = installation.edge_address[1]
    await run_load(port, [request] * WARM_UP, 8)
    found: Measured = {}
    began_s = _processor_time_s(installation.edge.pid)
    for connections, count in COUNTS.items():
        load = await run_load(port, [request] * count, connections)
        for name, value in (("p50", p50(load.latencies)), ("p99", p99(load.latencies))):
            found[f"submit: {name} at {connections} connections"] = value * 1e3
    spent_s = _processor_time_s(installation.edge.pid) - began_s
    return found | {"submit: processor time of the edge": spent_s / sum(COUNTS.values()) * 1e3}


def _processor_time_s(pid: int) -> float:
    """Return the time that a process has used the processor, which other load changes less than a latency."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def compare(old: Path, rounds: int) -> list[Figure]:
    """Return the ratio of each figure."""
    measured: dict[Path, list[Measured]] = {old: [], ROOT: []}
    for number in range(rounds):
        for tree in (old, ROOT) if number % 2 == 0 else (ROOT, old):
            measured[tree].append(await measure(tree))
    return [_figure(what, measured[old], measured[ROOT]) for what in measured[ROOT][0]]


def _figure(what: str, old: list[Measured], new: list[Measured]) -> Figure:
    ratio = p50([after[what] / before[what] for before, after in zip(old, new, strict=True)])
    unit = next(unit for name, unit in UNITS.items() if name in what)
    note = f"{p50([found[what] for found in old]):.3g} {unit} before, {p50([found[what] for found in new]):.3g} {unit}"
    return Figure("versions", what, ratio, "x", AIM, note=note)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("old", type=Path, help="a checkout of the older release")
    flags.add_argument("--rounds", type=int, default=9)
    given = flags.parse_args()
    for figure in uvloop.run(compare(given.old.resolve(), given.rounds)):
        print_figure(figure)


if __name__ == "__main__":
    main()
