"""`/livez`, `/readyz` and `/metrics`: liveness, readiness and Prometheus metrics."""

from litestar import Response
from msgspec import Struct, field
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from edge.core.error_handling import translate_errors
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep, get_or_head
from schemas.auth import ApiKey, Scope
from schemas.version import VERSION


class LivenessView(Struct, frozen=True):
    """The response of a running process."""

    status: str = "ok"


class ReadinessView(Struct, frozen=True):
    """Whether the edge accepts new jobs. `reasons`: why it does not, one text for each; empty if it does.

    `degraded`: faults that do not affect clients yet, such as the failure of one server of a broker cluster. `ailing`
    is the old name of `degraded`, kept for one release. `version`: that of this edge.
    """

    status: str
    reasons: tuple[str, ...] = field(default=(), name="why")
    degraded: tuple[str, ...] = ()
    ailing: tuple[str, ...] = ()
    version: str = VERSION


@get_or_head("/livez", opt={NO_AUTH: True})
async def livez() -> LivenessView:
    """Return 200 while the process runs."""
    return LivenessView()


async def _readiness_problems(services: EdgeServices) -> tuple[str, ...]:
    rebuilding = () if services.index.is_caught_up else ("the list of jobs is still being rebuilt: wait",)
    problem = await services.readiness.problem()
    return rebuilding if problem is None else (problem.detail, *rebuilding)


@get_or_head("/readyz", opt={NO_AUTH: True})
async def readyz(services: ServicesDep) -> Response[ReadinessView]:
    """Return 200 if the edge accepts new jobs, and otherwise 503 with the reasons."""
    reasons = await _readiness_problems(services)
    if reasons:
        return Response(ReadinessView("refusing", reasons), status_code=503)
    degraded = services.readiness.degraded
    return Response(ReadinessView("ok", degraded=degraded, ailing=degraded), status_code=200)


@get_or_head("/metrics", guards=[require_scope(Scope.HOSTS_READ)], media_type=CONTENT_TYPE_LATEST)
async def metrics(request: AnyRequest, services: ServicesDep) -> bytes:
    """Return Prometheus metrics: jobs by status and endpoint, hosts by state, and the use of the broker's store.

    A key with `power` or `admin` sees the jobs of all owners; other keys see those of their own.
    """
    caller: ApiKey = request.auth
    sees_all_owners = caller.allows(Scope.POWER)
    registry = CollectorRegistry()
    jobs = Gauge("lamplighter_jobs", "Jobs in the index", ["endpoint", "status"], registry=registry)
    for key, count in services.index.count_jobs().items():
        if sees_all_owners or key.owner == caller.owner:
            jobs.labels(key.endpoint, key.status).inc(count)
    hosts = Gauge("lamplighter_hosts", "Hosts by state", ["state"], registry=registry)
    for view in services.hosts.views():
        hosts.labels(view.state).inc()
    used = Gauge("lamplighter_broker_store_used_ratio", "Share of the broker's store in use", registry=registry)
    with translate_errors():
        used.set((await services.bus.health.status()).used_share)
    return generate_latest(registry)


ROUTES = (
    livez,
    readyz,
    metrics,
)
