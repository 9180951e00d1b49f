"""`health`: how many of the owner's jobs stand where, and what the hosts that run the endpoint do."""

from collections import Counter
from collections.abc import Iterable, Mapping

from edge.parts import Parts
from schemas.host import HostView
from schemas.words import ACTIVE, WAITING, Status

JOBS: Mapping[str, frozenset[Status]] = {
    "completed": frozenset({Status.SUCCEEDED}),
    "failed": frozenset({Status.FAILED, Status.EXPIRED}),
    "inProgress": ACTIVE,
    "inQueue": WAITING,
}

# A worker is a host. One that is off or stopping is none, as a serverless worker that scaled to zero.
WORKERS: Mapping[str, str] = {
    "waking": "initializing",
    "draining": "throttled",
    "blocked": "throttled",
    "fault": "unhealthy",
}
WORKER_STATES = ("idle", "running", "initializing", "throttled", "unhealthy")
_BAD_CARD = frozenset({"unhealthy", "lost"})


async def health(parts: Parts, owner: str, endpoint: str) -> dict[str, dict[str, int]]:
    """The answer. Raises Refused `endpoint_unknown`, `unavailable`."""
    parts.catalog.get(endpoint)
    await parts.index.own_writes(owner)
    retried = await parts.index.retried(owner, endpoint)
    counted = Counter[Status]()
    for place, count in parts.index.counts().items():
        if (place.owner, place.endpoint) == (owner, endpoint):
            counted[place.status] += count
    jobs = {name: sum(counted[status] for status in statuses) for name, statuses in JOBS.items()}
    hosts = parts.power.views(parts.hosts.views())
    return {
        "jobs": jobs | {"retried": retried},
        "workers": _workers(host for host in hosts if endpoint in host.endpoints),
    }


def _workers(hosts: Iterable[HostView]) -> dict[str, int]:
    states = Counter(_worker(host) for host in hosts)
    return {state: states[state] for state in WORKER_STATES}


def _worker(host: HostView) -> str | None:
    if host.state != "online":
        return WORKERS.get(host.state)
    if host.gpus and all(gpu.fitness in _BAD_CARD for gpu in host.gpus):
        return "unhealthy"
    return "running" if host.jobs else "idle"
