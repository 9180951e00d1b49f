"""Parameters of route handlers: the services of one edge, the authenticated owner, the language and the asker.

`edge.container` builds `EdgeServices`, and `edge.app` registers the dependencies. Authentication finds the key of a
request, its scopes, and the owner that it acts for.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anyio import sleep
from litestar import Request, WebSocket, route
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard
from msgspec import Struct, field

from bus.interface import Bus, VersionedRecord
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService
from edge.core.clients import AuthFailureThrottle, ThrottledClientLog, TrustedProxies
from edge.core.clock import Clock
from edge.core.concurrency import translate_errors
from edge.core.metrics import EdgeMetrics
from edge.deletion import OwnerDeletionService, OwnerDirectory
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.enrollment import HostEnrollment
from edge.hosts.host_tokens import HostTokens
from edge.hosts.registry import HostRegistry, HostSamples
from edge.http.middleware import add_response_headers, note_key_id
from edge.index.index import JobIndex
from edge.jobs.event_stream import EventStreams
from edge.jobs.forecast import EtaEstimator, WaitReasons
from edge.jobs.inputs import InputWaiter, UrlInputFetcher
from edge.jobs.job_actions import JobActionService
from edge.jobs.publish_window import PublishWindow
from edge.jobs.service import JobService
from edge.jobs.submission import BrokerReadiness
from edge.jobs.view import Asker, JobViewBuilder
from edge.notify.service import NotificationService
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from edge.owners.quotas import OwnerQuotas, RequestLimiter, StreamLimiter, rate_limited
from edge.owners.secrets import SecretStore
from edge.owners.signed_credentials import (
    NO_KEY,
    SESSION_PREFIX,
    SIGNATURE_PARAMETER,
    TOKEN_PREFIX,
    SessionIssuer,
    TokenIssuer,
    UrlSigner,
)
from edge.power.controller import PowerController
from edge.power.drivers.generic import RelayHub
from edge.record_metrics import PowerMetrics
from edge.store.port import AssetStore
from edge.usage import UsageRecorder, UsageReports
from edge.webhooks.dispatcher import WebhookServices
from schemas.credentials import ApiKey, Scope, parse_credential
from schemas.installation import AuditAction
from schemas.job import JobKey, is_token
from schemas.problems import ProblemError
from schemas.texts import Language


class EdgeServices(Struct, frozen=True, kw_only=True):
    """The services of one edge process.

    `form_dir`: the folder for files of multipart forms while they are read. `data_dir`: the edge's data folder.
    `certificates`: the files of the certificates that `/metrics` watches, by server. No facade keeps state here.
    """

    bus: Bus
    store: AssetStore
    assets: AssetService
    uploads: UploadService
    endpoints: EndpointRegistry
    index: JobIndex
    publish_window: PublishWindow
    readiness: BrokerReadiness
    input_waiter: InputWaiter
    webhooks: WebhookServices
    url_fetcher: UrlInputFetcher
    jobs: JobService
    job_actions: JobActionService
    event_streams: EventStreams
    job_views: JobViewBuilder
    eta: EtaEstimator
    hosts: HostRegistry
    host_samples: HostSamples
    wait_reasons: WaitReasons
    api_keys: ApiKeyStore
    secrets: SecretStore
    tokens: TokenIssuer
    sessions: SessionIssuer
    url_signer: UrlSigner
    enrollment: HostEnrollment
    host_tokens: HostTokens
    owners: OwnerDirectory
    owner_deletions: OwnerDeletionService
    quotas: OwnerQuotas
    power: PowerController
    usage_reports: UsageReports
    usage_recorder: UsageRecorder
    relay_hub: RelayHub
    audit: AuditLog
    notifications: NotificationService
    form_dir: Path
    data_dir: Path
    metrics: EdgeMetrics
    power_metrics: PowerMetrics
    stream_limits: StreamLimiter
    request_limits: RequestLimiter
    trusted_proxies: TrustedProxies
    now: Clock
    certificates: Mapping[str, Path] = field(default_factory=dict)
    client_events: ThrottledClientLog = field(default_factory=ThrottledClientLog)
    auth_failures: AuthFailureThrottle = field(default_factory=AuthFailureThrottle)


AnyRequest = Request[Any, Any, Any]
AnySocket = WebSocket[Any, Any, Any]
ServicesDep = NamedDependency[EdgeServices]
OwnerDep = NamedDependency[str]
LanguageDep = NamedDependency[Language]
AskerDep = NamedDependency[Asker]

# Litestar does not answer HEAD for a GET route (RFC 9110, section 9.1). Event streams stay GET only.
get_or_head = partial(route, http_method=["GET", "HEAD"])


def read_content_length(request: AnyRequest) -> int | None:
    """Return the size that the request declares for its body. The server delivers no more bytes than that."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() else None


async def read_when_final(services: EdgeServices, entry: VersionedRecord, wait_s: float) -> VersionedRecord:
    """Return the record once its job has ended, or the current record after `wait_s`."""
    key = entry.record.job.key
    await services.event_streams.wait_until_final(key, wait_s)
    return await services.jobs.read(key)


def parse_job_key(owner: OwnerDep, job_id: str) -> JobKey:
    """Return the key of the job in a path. Raises ProblemError `input_invalid` for an id that no job can have."""
    if not is_token(job_id):
        raise ProblemError("input_invalid", "a job id must have 1 to 64 characters of A-Z a-z 0-9 _ -")
    return JobKey(owner, job_id)


AnyConnection = ASGIConnection[Any, Any, Any, Any]

NO_AUTH = "open"  # opt of a route that needs no key
FOR_JOBS = "for_jobs"  # opt of a route where a key with the scope runner may name another owner
WS_UNAUTHORIZED_CODE = 4401  # close code for a missing, invalid or revoked key
KEY_REVOKED_REASON = "the key is no longer valid: connect again with another key"
SESSION_COOKIE = "lamplighter_session"
CONSOLE_HEADER = "x-lamplighter-console"  # pages of other sites cannot send it: no CORS answer allows it
_SAFE_METHODS = ("GET", "HEAD")


def read_credential(connection: AnyConnection) -> str | None:
    """Return the key, token or session of the request.

    It is in `Authorization: Bearer …`, `X-API-Key` or `?token=`; without these, in the cookie of the console.
    """
    return _read_header_credential(connection) or read_session_cookie(connection)


def _read_header_credential(connection: AnyConnection) -> str | None:
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential:
        return credential.strip()
    if not credential and parse_credential(scheme):
        return scheme  # the key without a scheme, as in RunPod's documentation
    return connection.headers.get("x-api-key") or connection.query_params.get("token")


def read_session_cookie(connection: AnyConnection) -> str | None:
    """Return the session in the cookie. WebSockets have none: any site may open one, with the browser's cookies."""
    return connection.cookies.get(SESSION_COOKIE) if connection.scope["type"] == ScopeType.HTTP else None


def _check_console_request(connection: AnyConnection) -> None:
    """Refuse a change that a page of another site asked for with the browser's cookie. Raises ProblemError."""
    if connection.scope.get("method") in _SAFE_METHODS or _read_header_credential(connection):
        return
    if CONSOLE_HEADER not in connection.headers:
        raise ProblemError(
            "forbidden", "a change with the console's cookie needs the header X-Lamplighter-Console: send it, or a key"
        )


async def authenticate(services: EdgeServices, text: str) -> ApiKey | None:
    """Return the key that `text` is, or of a token or session with its scopes. None if invalid. Raises BusError."""
    if text.startswith(TOKEN_PREFIX):
        return await services.tokens.verify(text)
    if text.startswith(SESSION_PREFIX):
        return await services.sessions.verify(text)
    return await services.api_keys.authenticate(text)


async def is_still_valid(services: EdgeServices, key: ApiKey, text: str) -> bool:
    """Return whether `key`, which was sent as `text`, is still valid. Raises BusError.

    Event streams and sockets call this again and again. A stream may outlive its token, but not the token's key.
    """
    if text.startswith(TOKEN_PREFIX):
        return await services.api_keys.get(key.id) is not None
    return await authenticate(services, text) is not None


def read_client_address(connection: AnyConnection) -> str:
    """Return the address of the client, which `edge.http.middleware` has put in place of a trusted proxy's."""
    return connection.client.host if connection.client else ""


async def authenticate_throttled(connection: AnyConnection, services: EdgeServices, text: str) -> ApiKey | None:
    """Authenticate as `authenticate` does, log failures, and delay addresses that fail often. Raises BusError."""
    key = await authenticate(services, text)
    if key is None:
        client = read_client_address(connection)
        credential = parse_credential(text)
        services.client_events.log("authentication_failed", client, key_id=credential.id if credential else "")
        if not services.trusted_proxies.is_shared(client):
            await sleep(services.auth_failures.count_failure(client))
    else:
        note_key_id(connection.scope, key.id)
    return key


def count_request(connection: AnyConnection, services: EdgeServices, key: ApiKey) -> None:
    """Count a request of `key` for its rate, and tell the client what is left. Raises ProblemError `rate_limited`."""
    state = None if key.id == NO_KEY else services.request_limits.count(key)
    if state is None:
        return
    figures = {"limit": state.limit, "remaining": state.remaining, "reset": state.reset_s}
    add_response_headers(connection.scope, [(f"ratelimit-{name}", str(value)) for name, value in figures.items()])
    if state.retry_after_s:
        services.client_events.log("request_refused", read_client_address(connection), code="rate_limited")
        raise rate_limited(key, state)


async def record_audit_event(
    request: AnyConnection, services: EdgeServices, action: AuditAction, subject: str, **facts: Any
) -> None:
    """Record in the audit log what the request's key did to `subject`. `facts`: owner, scopes and details."""
    await services.audit.record(action, subject, by=request.auth.id, client=read_client_address(request), **facts)


async def record_action_for_other_owner(
    request: AnyConnection, services: EdgeServices, action: AuditAction, job: JobKey
) -> None:
    """Record what the request's key did to the job of another owner; an owner's own jobs have their history."""
    if request.auth.owner != job.owner:
        await record_audit_event(request, services, action, job.id, owner=job.owner)


async def _authenticate_signed_url(connection: AnyConnection, services: EdgeServices) -> ApiKey | None:
    """Return the key that a signed URL stands for; None without a valid signature or if that key was revoked.

    Checked before a key in the headers: a signed URL also works with the key of another owner. Raises BusError.
    """
    if SIGNATURE_PARAMETER not in connection.query_params or connection.scope.get("method") not in _SAFE_METHODS:
        return None
    key = services.url_signer.key_for_url(connection.scope["path"], connection.query_params)
    if key is None or key.id == NO_KEY:
        return key
    return key if await services.api_keys.get(key.id) is not None else None


class AuthenticationMiddleware(AbstractAuthenticationMiddleware):
    """Rejects requests without a valid key, token or signature, and sets `request.auth` to the ApiKey."""

    async def authenticate_request(self, connection: AnyConnection) -> AuthenticationResult:
        services: EdgeServices = connection.app.state.services
        with translate_errors():
            key = await _authenticate_signed_url(connection, services)
            if key is None and (text := read_credential(connection)):
                _check_console_request(connection)
                key = await authenticate_throttled(connection, services, text)
        if key is None:
            raise ProblemError("unauthorized", "send a valid key as 'Authorization: Bearer lamp_…' or 'X-API-Key'")
        count_request(connection, services, key)
        return AuthenticationResult(user=key.owner, auth=key)


def require_scope(scope: Scope, *, or_runner: bool = False) -> Guard:
    """Return a guard that requires `scope`. With `or_runner`, the scope runner passes as well.

    The guard is async, because Litestar runs other guards in a thread.
    """

    async def guard(connection: AnyConnection, _: BaseRouteHandler) -> None:
        key: ApiKey = connection.auth
        if not (key.allows(scope) or (or_runner and Scope.RUNNER in key.scopes)):
            raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    return guard


def request_owner(connection: AnyConnection) -> str:
    """Return the owner of a request: the key's, or `?owner=`, which needs admin, or runner on a FOR_JOBS route."""
    for_jobs = bool(connection.route_handler.opt.get(FOR_JOBS))
    return resolve_owner(connection.auth, connection.query_params.get("owner"), for_jobs=for_jobs)


def resolve_owner(key: ApiKey, requested: str | None, *, for_jobs: bool = False) -> str:
    """Return the owner for a request with `key` that names `requested`. Raises ProblemError."""
    if requested is None or requested == key.owner:
        return key.owner
    if not {Scope.ADMIN, *((Scope.RUNNER,) if for_jobs else ())} & set(key.scopes):
        raise ProblemError("forbidden", "?owner= needs a key with the scope admin, or runner for the files of its jobs")
    if not is_token(requested):
        raise ProblemError("input_invalid", "?owner= must have 1 to 64 characters of A-Z a-z 0-9 _ -")
    return requested
