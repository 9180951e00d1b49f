"""`/v1/endpoints` and `/v1/hosts`: what can run, and where."""

from typing import Any, Literal

from litestar import post
from litestar.params import FromPath
from msgspec import Struct

from edge.auth.keys import needs
from edge.parts import Parts
from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Owner, Services, get_or_head
from edge.services.refusals import refusing
from schemas.access import Scope
from schemas.endpoint import Endpoint
from schemas.errors import Refused
from schemas.host import HostView
from schemas.job import Moment


class EndpointView(Struct, frozen=True):
    """An endpoint on the wire. `hosts` offer it, whether they are on or not."""

    name: str
    pool: str
    description: str
    input: dict[str, Any]
    image: str
    warm: bool
    hosts: tuple[str, ...]


class Endpoints(Struct, frozen=True):
    """What can run."""

    endpoints: list[EndpointView]


class Hosts(Struct, frozen=True):
    """Every host ever seen and not removed."""

    hosts: list[HostView]


def _shown(parts: Parts, endpoint: Endpoint) -> EndpointView:
    return EndpointView(
        name=endpoint.name,
        pool=endpoint.queue,
        description=endpoint.description,
        input=endpoint.input,
        image=endpoint.image,
        warm=endpoint.warm,
        hosts=tuple(sorted(parts.catalog.hosts_offering(endpoint.name))),
    )


@get_or_head("/v1/endpoints", guards=[needs(Scope.JOBS_READ)])
async def list_endpoints(parts: Services) -> Endpoints:
    """What can run, with the JSON Schema of each input."""
    return Endpoints([_shown(parts, endpoint) for endpoint in parts.catalog.all()])


@get_or_head("/v1/endpoints/{name:str}", guards=[needs(Scope.JOBS_READ)])
async def read_endpoint(parts: Services, name: FromPath[str]) -> EndpointView:
    """One endpoint."""
    return _shown(parts, parts.catalog.get(name))


@get_or_head("/v1/hosts", guards=[needs(Scope.HOSTS_READ)])
async def list_hosts(parts: Services, owner: Owner) -> Hosts:
    """The hosts and what they do."""
    return Hosts(list(parts.power.views(parts.hosts.views(owner))))


@get_or_head("/v1/hosts/{host:str}", guards=[needs(Scope.HOSTS_READ)])
async def read_host(parts: Services, owner: Owner, host: FromPath[str]) -> HostView:
    """One host."""
    return _found(parts, owner, host)


def _found(parts: Parts, owner: str, host: str) -> HostView:
    views = parts.power.views(parts.hosts.views(owner))
    found = next((view for view in views if view.id == host), None)
    if found is None:
        raise Refused("not_found", "no host of that id has ever come to this edge, and none is declared")
    return found


class PowerWish(Struct, frozen=True, forbid_unknown_fields=True):
    """What an owner wants of a host; without `until` it stands until `auto` takes it back."""

    want: Literal["on", "off", "auto"]
    until: Moment | None = None


@post("/v1/hosts/{host:str}/power", status_code=202, guards=[needs(Scope.POWER)], operation_class=body_of(PowerWish))
async def wish_power(request: AnyRequest, parts: Services, owner: Owner, host: FromPath[str]) -> HostView:
    """Hold a declared host on or off, or leave it to the law again. Off drains first, it never cuts a job."""
    wish = await read_struct(request, PowerWish)
    with refusing():
        await parts.power.hold(host, wish.want, wish.until)
    return _found(parts, owner, host)


ROUTES = (
    list_endpoints,
    read_endpoint,
    list_hosts,
    read_host,
    wish_power,
)
