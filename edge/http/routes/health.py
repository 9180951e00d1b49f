"""`/livez`, `/readyz` and `/metrics`: liveness, readiness and Prometheus metrics."""

from litestar import Response
from msgspec import Struct, field

from bus.metric_registry import CONTENT_TYPE, render_for_any_key
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep, get_or_head
from edge.http.metric_snapshot import read_for_any_key, read_for_operator
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
    degraded = (*services.readiness.degraded, *services.secrets.faults)
    return Response(ReadinessView("ok", degraded=degraded, ailing=degraded), status_code=200)


@get_or_head("/metrics", guards=[require_scope(Scope.HOSTS_READ)], media_type=CONTENT_TYPE)
async def metrics(request: AnyRequest, services: ServicesDep) -> bytes:
    """Return Prometheus metrics: of jobs, hosts, the broker, webhooks and this edge's requests.

    A key with `power` or `admin` sees all of them. Other keys see the jobs of their own owner, hosts by state, and the
    use of the broker's store.
    """
    caller: ApiKey = request.auth
    snapshot = services.metrics.registry.snapshot()
    if not caller.allows(Scope.POWER):
        await read_for_any_key(services, snapshot, caller.owner)
        return render_for_any_key(snapshot)
    await read_for_any_key(services, snapshot, None)
    await read_for_operator(services, snapshot)
    snapshot.set("lamplighter_edge_ready", not await _readiness_problems(services))
    return services.metrics.registry.render(snapshot)


ROUTES = (
    livez,
    readyz,
    metrics,
)
