"""`/v1/hosts`: read hosts, control their power, enroll and remove them."""

from contextlib import suppress
from typing import Literal

from litestar import delete, post
from litestar.params import FromPath, FromQuery
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import BusError
from edge.core.error_handling import translate_errors
from edge.hosts.samples import HostSample
from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, LanguageDep, OwnerDep, ServicesDep, get_or_head
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from schemas.auth import Scope
from schemas.enrollment import encode_join_token
from schemas.host import HostView
from schemas.ids import Token, is_token
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.problems import ProblemError
from schemas.texts import Language
from schemas.version import VERSION


class HostListView(Struct, frozen=True):
    """All hosts that were ever connected or are declared, without the removed ones. `version`: that of this edge."""

    hosts: list[HostView]
    version: str = VERSION


@get_or_head("/v1/hosts", guards=[require_scope(Scope.HOSTS_READ)])
async def list_hosts(services: ServicesDep, owner: OwnerDep, language: LanguageDep) -> HostListView:
    """List the hosts and their state."""
    return HostListView(_host_views(services, owner, language))


@get_or_head("/v1/hosts/{host:str}", guards=[require_scope(Scope.HOSTS_READ)])
async def read_host(services: ServicesDep, owner: OwnerDep, host: FromPath[str], language: LanguageDep) -> HostView:
    """Return one host and its state."""
    return _find_host(services, owner, host, language)


def _host_views(services: EdgeServices, owner: str, language: Language) -> list[HostView]:
    views = services.power.host_views(services.hosts.views(owner), language)
    return [replace(view, maintenance=services.hosts.pauses.of_host(view.id)) for view in views]


def _find_host(services: EdgeServices, owner: str, host: str, language: Language = Language.EN) -> HostView:
    found = next((view for view in _host_views(services, owner, language) if view.id == host), None)
    if found is None:
        raise ProblemError("not_found", "there is no host with this id: GET /v1/hosts lists all hosts")
    return found


class HostSamplesView(Struct, frozen=True):
    """Samples of one host, oldest first; a gap is a time in which the host was off.

    `interval_s`: the time that one sample stands for.
    """

    interval_s: float
    samples: tuple[HostSample, ...]


SampleWindow = Literal["1h", "24h", "7d"]


@get_or_head("/v1/hosts/{host:str}/samples", guards=[require_scope(Scope.HOSTS_READ)])
async def read_host_samples(
    services: ServicesDep, owner: OwnerDep, host: FromPath[str], window: FromQuery[SampleWindow] = "24h"
) -> HostSamplesView:
    """Return the load, VRAM, temperature and draw of each GPU of a host over the last hour, day or week."""
    _find_host(services, owner, host)
    series = services.host_samples.series(host, window)
    return HostSamplesView(series.interval_s, series.samples)


class PowerRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A power override. Without `until` it lasts until a request with `auto` removes it."""

    want: Literal["on", "off", "auto"]
    until: Moment | None = None


@post(
    "/v1/hosts/{host:str}/power",
    status_code=202,
    guards=[require_scope(Scope.POWER)],
    operation_class=json_body(PowerRequest),
)
async def set_power(request: AnyRequest, services: ServicesDep, owner: OwnerDep, host: FromPath[str]) -> HostView:
    """Keep a declared host on or off, or return it to automatic control. Off waits for running jobs to end."""
    body = await read_struct(request, PowerRequest)
    with translate_errors():
        await services.power.set_override(host, body.want, body.until)
    details = {"want": body.want} | ({"until": body.until.isoformat()} if body.until else {})
    await record_audit_event(request, services, AuditAction.HOST_POWER_SET, host, details=details)
    return _find_host(services, owner, host)


@post("/v1/hosts/{host:str}/maintenance", status_code=202, guards=[require_scope(Scope.POWER)])
async def start_maintenance(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, host: FromPath[str]
) -> HostView:
    """Put a host into maintenance: it starts no job, running jobs end, and no power rule switches it."""
    if _find_host(services, owner, host).maintenance is None:
        with translate_errors():
            await services.hosts.pauses.start_maintenance(host, request.auth.owner)
        await record_audit_event(request, services, AuditAction.HOST_MAINTENANCE_STARTED, host)
        services.power.request_tick()
    return _find_host(services, owner, host)


@delete("/v1/hosts/{host:str}/maintenance", status_code=202, guards=[require_scope(Scope.POWER)])
async def end_maintenance(request: AnyRequest, services: ServicesDep, owner: OwnerDep, host: FromPath[str]) -> HostView:
    """End the maintenance of a host, which starts jobs again within seconds."""
    if _find_host(services, owner, host).maintenance is not None:
        with translate_errors():
            await services.hosts.pauses.end_maintenance(host)
        await record_audit_event(request, services, AuditAction.HOST_MAINTENANCE_ENDED, host)
        services.power.request_tick()
    return _find_host(services, owner, host)


class HostRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A host to enroll. `id`: a name for the host, 1 to 64 characters."""

    id: Token


class CreatedHost(Struct, frozen=True):
    """An enrolled host. `command`: run it on that machine. Its token is shown only in this response."""

    id: str
    token: str
    command: str


@post("/v1/hosts", status_code=201, guards=[require_scope(Scope.ADMIN)], operation_class=json_body(HostRequest))
async def add_host(request: AnyRequest, services: ServicesDep) -> CreatedHost:
    """Enroll a host. Creates its broker account and its key, and returns a token that contains both."""
    body = await read_struct(request, HostRequest)
    with translate_errors():
        token = encode_join_token(await services.enrollment.add(body.id))
    await record_audit_event(request, services, AuditAction.HOST_ADDED, body.id)
    return CreatedHost(body.id, token, f"lamplighter runner --join {token}")


@delete("/v1/hosts/{host:str}", status_code=204, guards=[require_scope(Scope.ADMIN)])
async def remove_host(request: AnyRequest, services: ServicesDep, host: FromPath[str]) -> None:
    """Remove a host. Its key stops working and its broker connection is closed, on other edges within 5 s."""
    if not is_token(host):
        raise ProblemError("not_found", "there is no host with this id: GET /v1/hosts lists all hosts")
    with translate_errors():
        await services.enrollment.remove(host)
    await record_audit_event(request, services, AuditAction.HOST_REMOVED, host)
    with suppress(BusError):  # the host is removed; the list is refreshed again soon
        await services.hosts.refresh()


@post("/v1/hosts/{host:str}/leave", status_code=204, guards=[require_scope(Scope.RUNNER)])
async def leave(request: AnyRequest, services: ServicesDep, host: FromPath[str]) -> None:
    """Remove a host whose runner ends. Only the host itself may say so, with its own key.

    It must have joined with a token of `POST /v1/host-tokens` that does not keep its hosts. A declared host keeps its
    endpoints, override and maintenance, because the edge powers it on again.
    """
    if request.auth.host != host:
        raise ProblemError("forbidden", "only the host itself may leave, with its own key: an admin removes it")
    with translate_errors():
        left = await services.host_tokens.leave(host)
    if left:
        await record_audit_event(request, services, AuditAction.HOST_LEFT, host)
    with suppress(BusError):
        await services.hosts.refresh()


class RelayRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A relay to admit. `id`: a name for it, 1 to 64 characters, which its key has as owner."""

    id: Token


class CreatedRelay(Struct, frozen=True):
    """A relay's key. `command`: run it on a machine of its network. Its token is shown only in this response."""

    id: str
    key_id: str
    token: str
    command: str


@post("/v1/relays", status_code=201, guards=[require_scope(Scope.ADMIN)], operation_class=json_body(RelayRequest))
async def add_relay(request: AnyRequest, services: ServicesDep) -> CreatedRelay:
    """Make a key with the scope relay, and return a token that contains it with the address of this edge."""
    body = await read_struct(request, RelayRequest)
    services.quotas.check_not_deleting(body.id)
    with translate_errors():
        key, invitation = await services.enrollment.add_relay(body.id)
    await record_audit_event(request, services, AuditAction.KEY_CREATED, key.id, owner=key.owner, scopes=key.scopes)
    token = encode_join_token(invitation)
    return CreatedRelay(body.id, key.id, token, f"lamplighter relay --join {token}")


ROUTES = (
    list_hosts,
    read_host,
    read_host_samples,
    set_power,
    start_maintenance,
    end_maintenance,
    add_host,
    add_relay,
    remove_host,
    leave,
)
