"""`health`: how many of the owner's jobs stand where, and what the hosts that run the endpoint do."""

from collections import Counter
from collections.abc import Iterable, Mapping

from edge.http.dependencies import EdgeServices
from schemas.host import HostView
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Status

JOB_COUNTS: Mapping[str, frozenset[Status]] = {
    "completed": frozenset({Status.SUCCEEDED}),
    "failed": frozenset({Status.FAILED, Status.EXPIRED}),
    "inProgress": ACTIVE_STATUSES,
    "inQueue": WAITING_STATUSES,
}

# A worker is a host. One that is off or stopping is none, as a serverless worker that scaled to zero.
WORKER_BY_HOST_STATE: Mapping[str, str] = {
    "waking": "initializing",
    "draining": "throttled",
    "blocked": "throttled",
    "fault": "unhealthy",
}
WORKER_STATES = ("idle", "running", "initializing", "throttled", "unhealthy")
_UNFIT_GPU = frozenset({"unhealthy", "lost"})


async def endpoint_health(parts: EdgeServices, owner: str, endpoint: str) -> dict[str, dict[str, int]]:
    """The answer. Raises Refused `endpoint_unknown`, `unavailable`."""
    parts.endpoints.get(endpoint)
    await parts.index.wait_for_own_writes(owner)
    retried = await parts.index.count_retried(owner, endpoint)
    counted = Counter[Status]()
    for place, count in parts.index.count_jobs().items():
        if (place.owner, place.endpoint) == (owner, endpoint):
            counted[place.status] += count
    jobs = {name: sum(counted[status] for status in statuses) for name, statuses in JOB_COUNTS.items()}
    hosts = parts.power.views(parts.hosts.views())
    return {
        "jobs": jobs | {"retried": retried},
        "workers": _workers(host for host in hosts if endpoint in host.endpoints),
    }


def _workers(hosts: Iterable[HostView]) -> dict[str, int]:
    states = Counter(_worker_state(host) for host in hosts)
    return {state: states[state] for state in WORKER_STATES}


def _worker_state(host: HostView) -> str | None:
    if host.state != "online":
        return WORKER_BY_HOST_STATE.get(host.state)
    if host.gpus and all(gpu.fitness in _UNFIT_GPU for gpu in host.gpus):
        return "unhealthy"
    return "running" if host.jobs else "idle"
