"""Failures of a cluster under load, one after the other, and how long its clients received nothing meanwhile."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import Random

import anyio
import anyio.abc
from msgspec import Struct

from bus.interface import Bus
from tests.chaos.evidence import HostOutage
from tests.cluster.broker_cluster import find_leader, is_replicated
from tests.cluster.cluster_installation import EDGES, ClusterInstallation
from tests.cluster.gap_meter import GapMeter
from tests.support.wait import wait_for

JOBS_AFTER_FAILURE = 6  # so many jobs are accepted and end before the failure is repaired
OWNER_COUNT = 6
JOB_SECONDS = (0.1, 0.8)
REPLICATION_TIMEOUT_S = 90.0
RECONNECT_GRACE_S = 30.0  # within this time a restarted machine learns that others have its jobs


class ServiceGaps(Struct, frozen=True):
    """The longest gaps, in seconds, between two 202s and between two ends of jobs, around one failure."""

    failure: str
    accepted_s: float
    ended_s: float


class ClusterLoad:
    """Owners that submit a job, wait for its end, download its output and go on, until `stop`."""

    def __init__(self, cluster: ClusterInstallation, rng: Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._stop = False
        self.accepted = GapMeter()
        self.ended = GapMeter()

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        for number in range(OWNER_COUNT):
            tasks.start_soon(self._owner, number)

    def stop(self) -> None:
        """Submit no new jobs."""
        self._stop = True

    async def _owner(self, number: int) -> None:
        turn = 0
        async with self._cluster.client(f"owner-{number}") as client:
            while not self._stop:
                turn += 1
                name = f"job-{number}-{turn}"
                seconds = round(self._rng.uniform(*JOB_SECONDS), 2)
                job_id = await client.submit(name, {"text": name, "seconds": seconds})
                self.accepted.beat()
                job = await client.wait_until_ended(job_id)
                self.ended.beat()
                await client.fetch(job, name)

    async def wait_for_progress(self) -> None:
        """Wait until new jobs were accepted and have ended."""
        accepted, ended = self.accepted.count + JOBS_AFTER_FAILURE, self.ended.count + JOBS_AFTER_FAILURE

        async def on() -> bool:
            return self.accepted.count >= accepted and self.ended.count >= ended

        await wait_for(on, timeout_s=REPLICATION_TIMEOUT_S)


ClusterFailure = Callable[[ClusterInstallation, Bus, ClusterLoad, Random], Awaitable[None]]


async def leader_killed(cluster: ClusterInstallation, bus: Bus, load: ClusterLoad, _: Random) -> None:
    """Kill the server that leads STATE."""
    name = await find_leader(bus)
    await cluster.brokers.kill(name)
    await load.wait_for_progress()
    cluster.brokers.start(name)


async def edge_killed(cluster: ClusterInstallation, _: Bus, load: ClusterLoad, rng: Random) -> None:
    """Kill one of the two edges."""
    name = rng.choice(EDGES)
    await cluster.edges[name].kill()
    await load.wait_for_progress()
    await cluster.start_edge_of(name)
    await cluster.wait_until_balanced(*EDGES)


async def runner_killed(cluster: ClusterInstallation, bus: Bus, load: ClusterLoad, rng: Random) -> None:
    """Kill a runner: its jobs go on, and its restart adopts them."""
    host = rng.choice(sorted(cluster.runners))
    await cluster.runners[host].kill()
    await load.wait_for_progress()
    await cluster.start_runner_of(host)
    await cluster.online(bus, host)


async def power_cut(cluster: ClusterInstallation, bus: Bus, load: ClusterLoad, rng: Random) -> None:
    """Cut the power of a machine with a broker, a runner and perhaps an edge, and with it its jobs."""
    machine = rng.choice(cluster.machines)
    since = anyio.current_time()
    await cluster.cut_power(machine)
    await load.wait_for_progress()
    await cluster.give_power(machine)
    cluster.history.note_outage(HostOutage(f"gpu-{machine.number}", since, anyio.current_time() + RECONNECT_GRACE_S))
    await cluster.online(bus, f"gpu-{machine.number}")
    await cluster.wait_until_balanced(*EDGES)


CLUSTER_FAILURES: Mapping[str, ClusterFailure] = {
    "stream leader killed": leader_killed,
    "edge killed": edge_killed,
    "runner killed": runner_killed,
    "machine without power": power_cut,
}


async def apply_failure(
    name: str, cluster: ClusterInstallation, bus: Bus, load: ClusterLoad, rng: Random
) -> ServiceGaps:
    """Cause the failure, see that work goes on, repair it, and wait until the cluster is complete."""
    await load.wait_for_progress()
    load.accepted.take_longest_s()
    load.ended.take_longest_s()
    await CLUSTER_FAILURES[name](cluster, bus, load, rng)

    await wait_for(partial(is_replicated, bus), timeout_s=REPLICATION_TIMEOUT_S)
    await load.wait_for_progress()
    return ServiceGaps(name, load.accepted.take_longest_s(), load.ended.take_longest_s())
