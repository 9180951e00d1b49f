"""`/livez`, `/readyz` and `/metrics`."""

from litestar import Response
from msgspec import Struct, field
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from edge.core.error_handling import translate_errors
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep, get_or_head
from schemas.auth import ApiKey, Scope
from schemas.problems import ProblemError


class LivenessView(Struct, frozen=True):
    """The process answers."""

    status: str = "ok"


class ReadinessView(Struct, frozen=True):
    """Whether work is taken, and what is in the way when it is not.

    `degraded`: what is broken without keeping work out, such as one server of a broker that has three. `ailing` is its
    old name, answered beside it for one release.
    """

    status: str
    reasons: tuple[str, ...] = field(default=(), name="why")
    degraded: tuple[str, ...] = ()
    ailing: tuple[str, ...] = ()


@get_or_head("/livez", opt={NO_AUTH: True})
async def livez() -> LivenessView:
    """The process answers."""
    return LivenessView()


async def _readiness_problems(parts: EdgeServices) -> tuple[str, ...]:
    rebuilding = () if parts.index.is_caught_up else ("the list of jobs is still being rebuilt",)
    try:
        await parts.readiness.check()
    except ProblemError as refused:
        return (refused.detail, *rebuilding)
    return rebuilding


@get_or_head("/readyz", opt={NO_AUTH: True})
async def readyz(parts: ServicesDep) -> Response[ReadinessView]:
    """200 when new work is taken, 503 with the reasons when not."""
    why = await _readiness_problems(parts)
    degraded = parts.readiness.degraded
    ready = ReadinessView("refusing", why) if why else ReadinessView("ok", degraded=degraded, ailing=degraded)
    return Response(ready, status_code=503 if why else 200)


@get_or_head("/metrics", guards=[require_scope(Scope.HOSTS_READ)], media_type=CONTENT_TYPE_LATEST)
async def metrics(request: AnyRequest, parts: ServicesDep) -> bytes:
    """Prometheus: jobs by status and endpoint, hosts by state, how full the broker's store is.

    A key with `power` or `admin` sees the jobs of all owners, another those of its own.
    """
    caller: ApiKey = request.auth
    every = caller.allows(Scope.POWER)
    registry = CollectorRegistry()
    jobs = Gauge("lamplighter_jobs", "Jobs in the index", ["endpoint", "status"], registry=registry)
    for key, count in parts.index.count_jobs().items():
        if every or key.owner == caller.owner:
            jobs.labels(key.endpoint, key.status).inc(count)
    hosts = Gauge("lamplighter_hosts", "Hosts by state", ["state"], registry=registry)
    for view in parts.hosts.views():
        hosts.labels(view.state).inc()
    used = Gauge("lamplighter_broker_store_used_ratio", "Share of the broker's store in use", registry=registry)
    with translate_errors():
        used.set((await parts.bus.health.status()).used_share)
    return generate_latest(registry)


ROUTES = (
    livez,
    readyz,
    metrics,
)
