"""`/v1/hosts` and `/v1/host-tokens`: read hosts, control their power, enroll and remove them; join tokens."""

from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Literal

from anyio import sleep
from litestar import delete, get, post
from litestar.params import FromPath, FromQuery
from msgspec import Meta, Struct
from msgspec.structs import replace

from bus.interface import BusError
from edge.core.concurrency import translate_errors
from edge.hosts.host_tokens import HostTokenTerms
from edge.hosts.registry import HostSample
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import (
    AnyRequest,
    EdgeServices,
    LanguageDep,
    OwnerDep,
    ServicesDep,
    get_or_head,
    read_client_address,
    record_audit_event,
)
from edge.http.openapi import json_body
from edge.http.request_input import read_struct
from schemas.credentials import HostToken, JoinRequest, JoinToken, Scope, encode_join_token
from schemas.host import HostView
from schemas.installation import AuditAction
from schemas.job import Moment, Token, is_token
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
    """Put a host into maintenance: it starts no new job, running jobs continue, and no power rule switches it."""
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


TOKEN_USES_LIMIT = 1_000_000
TOKEN_TTL_LIMIT_S = 10 * 365 * 86_400.0
DEFAULT_HOST_PREFIX = "host"


class HostTokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A token with which `uses` hosts may join during `ttl_s` seconds.

    The ids of the hosts begin with `prefix` and a hyphen. `pool`: they offer only endpoints of this pool. They are
    removed when they end, unless `keep`.
    """

    uses: Annotated[int, Meta(ge=1, le=TOKEN_USES_LIMIT)]
    ttl_s: Annotated[float, Meta(ge=60, le=TOKEN_TTL_LIMIT_S)]
    prefix: Annotated[Token, Meta(max_length=40)] = DEFAULT_HOST_PREFIX
    pool: Token | None = None
    keep: bool = False


HostTokenState = Literal["active", "used_up", "expired", "revoked"]


class HostTokenView(Struct, frozen=True, kw_only=True):
    """A token that hosts share. `token`, `command`: with the secret, only in the response that creates it.

    `hosts`: how many of its hosts are enrolled now.
    """

    id: str
    state: HostTokenState
    uses: int
    used: int
    hosts: int
    prefix: str
    pool: str | None
    keep: bool
    created_at: Moment
    expires_at: Moment
    revoked_at: Moment | None
    token: str | None = None
    command: str | None = None


class HostTokenListView(Struct, frozen=True):
    """The tokens that hosts share, without their secrets; those that ended up to 30 days ago too."""

    tokens: list[HostTokenView]


_TOKEN_STATES: dict[str | None, HostTokenState] = {
    None: "active",
    "join_token_revoked": "revoked",
    "join_token_expired": "expired",
    "join_token_used_up": "used_up",
}


def _to_token_view(services: ServicesDep, token: HostToken, hosts: int = 0, text: str | None = None) -> HostTokenView:
    return HostTokenView(
        id=token.id,
        state=_TOKEN_STATES[token.refusal(services.now())],
        uses=token.uses,
        used=token.used,
        hosts=hosts,
        prefix=token.prefix,
        pool=token.pool,
        keep=token.keeps_hosts,
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
        token=text,
        command=text and f"lamplighter runner --join {text}",
    )


@post(
    "/v1/host-tokens", status_code=201, guards=[require_scope(Scope.ADMIN)], operation_class=json_body(HostTokenRequest)
)
async def create_host_token(request: AnyRequest, services: ServicesDep) -> HostTokenView:
    """Create a join token that many hosts share. Only this response contains it."""
    body = await read_struct(request, HostTokenRequest)
    terms = HostTokenTerms(body.uses, timedelta(seconds=body.ttl_s), body.prefix, body.pool, body.keep)
    with translate_errors():
        token, shared = await services.host_tokens.create(terms, request.auth.id)
    details = {"uses": str(body.uses), "expires_at": token.expires_at.isoformat(), "prefix": body.prefix}
    await record_audit_event(request, services, AuditAction.HOST_TOKEN_CREATED, token.id, details=details)
    return _to_token_view(services, token, text=encode_join_token(shared))


@get("/v1/host-tokens", guards=[require_scope(Scope.ADMIN)])
async def list_host_tokens(services: ServicesDep) -> HostTokenListView:
    """List the join tokens that hosts share, without their secrets."""
    with translate_errors():
        found = await services.host_tokens.list()
    return HostTokenListView([_to_token_view(services, token, hosts) for token, hosts in found])


@delete("/v1/host-tokens/{token_id:str}", status_code=204, guards=[require_scope(Scope.ADMIN)])
async def revoke_host_token(
    request: AnyRequest, services: ServicesDep, token_id: FromPath[str], hosts: FromQuery[bool] = False
) -> None:
    """Revoke a join token: no further host can join with it. The hosts that have joined stay, unless `hosts`."""
    if not is_token(token_id):
        raise ProblemError("not_found", f"there is no join token {token_id!r}: `lamplighter hosts token list`")
    with translate_errors():
        await services.host_tokens.revoke(token_id)
    await record_audit_event(request, services, AuditAction.HOST_TOKEN_REVOKED, token_id)
    if not hosts:
        return
    with translate_errors():
        removed = await services.host_tokens.remove_hosts(token_id)
    for host in removed:
        details = {"token": token_id}
        await record_audit_event(request, services, AuditAction.HOST_REMOVED, host, details=details)


@post("/v1/host-tokens/join", status_code=200, opt={NO_AUTH: True}, operation_class=json_body(JoinRequest))
async def join(request: AnyRequest, services: ServicesDep) -> JoinToken:
    """Join with a token that hosts share: enrolls the host of the runner that asks, and returns its own credentials.

    A repeated request with the same `instance` gets the same host, and takes no other use of the token.
    """
    body = await read_struct(request, JoinRequest)
    with translate_errors():
        joined = await services.host_tokens.join(body)
    client = read_client_address(request)
    if joined is None:
        services.client_events.log("join_failed", client, token=body.token)
        if not services.trusted_proxies.is_shared(client):
            await sleep(services.auth_failures.count_failure(client))
        raise ProblemError("unauthorized", "the join token is not known here: copy the whole line again")
    await services.audit.record(
        AuditAction.HOST_JOINED, joined.host, by=body.token, client=client, details={"token": body.token}
    )
    return joined


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
    create_host_token,
    list_host_tokens,
    revoke_host_token,
    join,
)
