"""`/v1/endpoints`: the endpoints of the settings and of the hosts, with the JSON Schema of each input."""

from typing import Any

from litestar.params import FromPath
from msgspec import Struct

from edge.http.auth import require_scope
from edge.http.dependencies import EdgeServices, ServicesDep, get_or_head
from schemas.auth import Scope
from schemas.endpoint import Endpoint


class EndpointView(Struct, frozen=True):
    """An endpoint. `hosts`: the hosts that offer it, powered on or not."""

    name: str
    pool: str
    description: str
    input: dict[str, Any]
    image: str
    warm: bool
    hosts: tuple[str, ...]


class EndpointListView(Struct, frozen=True):
    """All endpoints that jobs can name."""

    endpoints: list[EndpointView]


def _to_endpoint_view(services: EdgeServices, endpoint: Endpoint) -> EndpointView:
    return EndpointView(
        name=endpoint.name,
        pool=endpoint.effective_pool,
        description=endpoint.description,
        input=endpoint.input,
        image=endpoint.image,
        warm=endpoint.warm,
        hosts=tuple(sorted(services.endpoints.hosts_offering(endpoint.name))),
    )


@get_or_head("/v1/endpoints", guards=[require_scope(Scope.JOBS_READ)])
async def list_endpoints(services: ServicesDep) -> EndpointListView:
    """List the endpoints, with the JSON Schema of each input."""
    return EndpointListView([_to_endpoint_view(services, endpoint) for endpoint in services.endpoints.all()])


@get_or_head("/v1/endpoints/{name:str}", guards=[require_scope(Scope.JOBS_READ)])
async def read_endpoint(services: ServicesDep, name: FromPath[str]) -> EndpointView:
    """Return one endpoint, with the JSON Schema of its input."""
    return _to_endpoint_view(services, services.endpoints.get(name))


ROUTES = (list_endpoints, read_endpoint)
