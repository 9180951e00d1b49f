"""`/v1/endpoints` and `/v1/hosts`: what can run, and where."""

from contextlib import suppress
from typing import Literal

from litestar import delete, post
from litestar.params import FromPath
from msgspec import Struct

from bus.interface import BusError
from edge.core.error_handling import translate_errors
from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, OwnerDep, ServicesDep, get_or_head
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from schemas.auth import Scope
from schemas.enrollment import encode_join_token
from schemas.host import HostView
from schemas.ids import Token, is_token
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.problems import ProblemError


class HostListView(Struct, frozen=True):
    """Every host ever seen and not removed."""

    hosts: list[HostView]


@get_or_head("/v1/hosts", guards=[require_scope(Scope.HOSTS_READ)])
async def list_hosts(parts: ServicesDep, owner: OwnerDep) -> HostListView:
    """The hosts and what they do."""
    return HostListView(list(parts.power.views(parts.hosts.views(owner))))


@get_or_head("/v1/hosts/{host:str}", guards=[require_scope(Scope.HOSTS_READ)])
async def read_host(parts: ServicesDep, owner: OwnerDep, host: FromPath[str]) -> HostView:
    """One host."""
    return _find_host(parts, owner, host)


def _find_host(parts: EdgeServices, owner: str, host: str) -> HostView:
    views = parts.power.views(parts.hosts.views(owner))
    found = next((view for view in views if view.id == host), None)
    if found is None:
        raise ProblemError("not_found", "no host of that id has ever come to this edge, and none is declared")
    return found


class PowerRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What an owner wants of a host; without `until` it stands until `auto` takes it back."""

    want: Literal["on", "off", "auto"]
    until: Moment | None = None


@post(
    "/v1/hosts/{host:str}/power",
    status_code=202,
    guards=[require_scope(Scope.POWER)],
    operation_class=json_body(PowerRequest),
)
async def set_power(request: AnyRequest, parts: ServicesDep, owner: OwnerDep, host: FromPath[str]) -> HostView:
    """Hold a declared host on or off, or leave it to the law again. Off drains first, it never cuts a job."""
    wish = await read_struct(request, PowerRequest)
    with translate_errors():
        await parts.power.set_override(host, wish.want, wish.until)
    return _find_host(parts, owner, host)


# MERGED edge/routes/joining.py: `POST /v1/hosts` and `DELETE /v1/hosts/{id}`: who may come in as a host. Scope admin;
# a token is shown once.


class HostRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The host that is to join."""

    id: Token


class CreatedHost(Struct, frozen=True):
    """`command` is what to type on that machine; the token in it is shown here and nowhere afterwards."""

    id: str
    token: str
    command: str


@post("/v1/hosts", status_code=201, guards=[require_scope(Scope.ADMIN)], operation_class=json_body(HostRequest))
async def add_host(request: AnyRequest, parts: ServicesDep) -> CreatedHost:
    """Let a machine join: broker credentials and an asset key of its own."""
    asked = await read_struct(request, HostRequest)
    with translate_errors():
        token = encode_join_token(await parts.enrollment.add(asked.id))
    await record_audit_event(request, parts, AuditAction.HOST_ADDED, asked.id)
    return CreatedHost(asked.id, token, f"lamplighter runner --join {token}")


@delete("/v1/hosts/{host:str}", status_code=204, guards=[require_scope(Scope.ADMIN)])
async def remove_host(request: AnyRequest, parts: ServicesDep, host: FromPath[str]) -> None:
    """Put a host out: its key is refused and its connection to the broker is cut at once (other edges: within 5 s)."""
    if not is_token(host):
        raise ProblemError("not_found", "there is no such host")
    with translate_errors():
        await parts.enrollment.remove(host)
    await record_audit_event(request, parts, AuditAction.HOST_REMOVED, host)
    with suppress(BusError):  # out it is; who is still there is read again soon
        await parts.hosts.refresh()


ROUTES = (
    list_hosts,
    read_host,
    set_power,
    add_host,
    remove_host,
)
