"""Count the owner's jobs by state, and the hosts of an endpoint as RunPod's workers, for `health`."""

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

# A worker is a host. A host that is off or stopping does not count, like a worker that scaled to zero.
WORKER_BY_HOST_STATE: Mapping[str, str] = {
    "waking": "initializing",
    "draining": "throttled",
    "blocked": "throttled",
    "fault": "unhealthy",
}
WORKER_STATES = ("idle", "running", "initializing", "throttled", "unhealthy")
_UNFIT_GPU = frozenset({"unhealthy", "lost"})


async def endpoint_health(services: EdgeServices, owner: str, endpoint: str) -> dict[str, dict[str, int]]:
    """Return the body of `health`. Raises ProblemError `endpoint_unknown` or `unavailable`."""
    services.endpoints.get(endpoint)
    await services.index.wait_for_own_writes(owner)
    retried = await services.index.count_retried(owner, endpoint)
    count_by_status = Counter[Status]()
    for key, count in services.index.count_jobs().items():
        if (key.owner, key.endpoint) == (owner, endpoint):
            count_by_status[key.status] += count
    jobs = {name: sum(count_by_status[status] for status in statuses) for name, statuses in JOB_COUNTS.items()}
    hosts = services.power.host_views(services.hosts.views())
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
