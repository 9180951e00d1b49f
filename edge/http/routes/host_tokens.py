"""`/v1/host-tokens`: join tokens that many hosts share, and joining with one."""

from datetime import timedelta
from typing import Annotated, Literal

from anyio import sleep
from litestar import delete, get, post
from litestar.params import FromPath, FromQuery
from msgspec import Meta, Struct

from edge.core.error_handling import translate_errors
from edge.hosts.host_tokens import HostTokenTerms
from edge.http.auth import NO_AUTH, read_client_address, record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, ServicesDep
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from schemas.auth import Scope
from schemas.enrollment import HostToken, JoinRequest, JoinToken, encode_join_token
from schemas.ids import Token, is_token
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.problems import ProblemError

USES_LIMIT = 1_000_000
TTL_LIMIT_S = 10 * 365 * 86_400.0
DEFAULT_PREFIX = "host"


class HostTokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A token with which `uses` hosts may join during `ttl_s` seconds.

    The ids of the hosts begin with `prefix` and a hyphen. `pool`: they offer only endpoints of this pool. They are
    removed when they end, unless `keep`.
    """

    uses: Annotated[int, Meta(ge=1, le=USES_LIMIT)]
    ttl_s: Annotated[float, Meta(ge=60, le=TTL_LIMIT_S)]
    prefix: Annotated[Token, Meta(max_length=40)] = DEFAULT_PREFIX
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


_STATES: dict[str | None, HostTokenState] = {
    None: "active",
    "join_token_revoked": "revoked",
    "join_token_expired": "expired",
    "join_token_used_up": "used_up",
}


def _to_view(services: ServicesDep, token: HostToken, hosts: int = 0, text: str | None = None) -> HostTokenView:
    return HostTokenView(
        id=token.id,
        state=_STATES[token.refusal(services.now())],
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
    return _to_view(services, token, text=encode_join_token(shared))


@get("/v1/host-tokens", guards=[require_scope(Scope.ADMIN)])
async def list_host_tokens(services: ServicesDep) -> HostTokenListView:
    """List the join tokens that hosts share, without their secrets."""
    with translate_errors():
        found = await services.host_tokens.list()
    return HostTokenListView([_to_view(services, token, hosts) for token, hosts in found])


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


ROUTES = (create_host_token, list_host_tokens, revoke_host_token, join)
