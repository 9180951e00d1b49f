"""`/livez`, `/readyz` and `/metrics`."""

from litestar import Response
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from edge.auth.keys import OPEN, needs
from edge.parts import Parts
from edge.routes.given import AnyRequest, Services, get_or_head
from edge.services.refusals import refusing
from schemas.access import ApiKey, Scope
from schemas.errors import Refused


class Alive(Struct, frozen=True):
    """The process answers."""

    status: str = "ok"


class Ready(Struct, frozen=True):
    """Whether work is taken, and what is in the way when it is not.

    `ailing`: what is broken and in nobody's way yet, such as one server of a broker that is several.
    """

    status: str
    why: tuple[str, ...] = ()
    ailing: tuple[str, ...] = ()


@get_or_head("/livez", opt={OPEN: True})
async def livez() -> Alive:
    """The process answers."""
    return Alive()


async def _obstacles(parts: Parts) -> tuple[str, ...]:
    rebuilding = () if parts.index.caught_up else ("the list of jobs is still being rebuilt",)
    try:
        await parts.gate.check()
    except Refused as refused:
        return (refused.detail, *rebuilding)
    return rebuilding


@get_or_head("/readyz", opt={OPEN: True})
async def readyz(parts: Services) -> Response[Ready]:
    """200 when new work is taken, 503 with the reasons when not."""
    why = await _obstacles(parts)
    ready = Ready("refusing", why) if why else Ready("ok", ailing=parts.gate.ailing)
    return Response(ready, status_code=503 if why else 200)


@get_or_head("/metrics", guards=[needs(Scope.HOSTS_READ)], media_type=CONTENT_TYPE_LATEST)
async def metrics(request: AnyRequest, parts: Services) -> bytes:
    """Prometheus: jobs by status and endpoint, hosts by state, how full the broker's store is.

    A key with `power` or `admin` sees the jobs of all owners, another those of its own.
    """
    caller: ApiKey = request.auth
    every = caller.allows(Scope.POWER)
    registry = CollectorRegistry()
    jobs = Gauge("lamplighter_jobs", "Jobs in the index", ["endpoint", "status"], registry=registry)
    for key, count in parts.index.counts().items():
        if every or key.owner == caller.owner:
            jobs.labels(key.endpoint, key.status).inc(count)
    hosts = Gauge("lamplighter_hosts", "Hosts by state", ["state"], registry=registry)
    for view in parts.hosts.views():
        hosts.labels(view.state).inc()
    used = Gauge("lamplighter_broker_store_used_ratio", "Share of the broker's store in use", registry=registry)
    with refusing():
        used.set((await parts.bus.link.health()).used)
    return generate_latest(registry)


ROUTES = (
    livez,
    readyz,
    metrics,
)
