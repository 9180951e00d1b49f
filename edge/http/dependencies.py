"""Dependencies of route handlers: the services of one edge, the owner, the language and the asker of a request.

`edge.container` builds `EdgeServices`, and `edge.app` registers the dependencies. Some calls that many handlers make
are here too. `edge.http.auth` decides whose request it is, and what its key may do.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from litestar import Request, WebSocket, route
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from msgspec import Struct, field

from bus.interface import Bus, VersionedRecord
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService
from edge.core.clients import AuthFailureThrottle, ThrottledClientLog, TrustedProxies
from edge.core.clock import Clock
from edge.core.metrics import EdgeMetrics
from edge.deletion import OwnerDeletionService, OwnerDirectory
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.enrollment import HostEnrollment
from edge.hosts.host_tokens import HostTokens
from edge.hosts.registry import HostRegistry, HostSamples
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
from edge.owners.quotas import OwnerQuotas, RequestLimiter, StreamLimiter
from edge.owners.secrets import SecretStore
from edge.owners.signed_credentials import SessionIssuer, TokenIssuer, UrlSigner
from edge.power.controller import PowerController
from edge.power.drivers.generic import RelayHub
from edge.record_metrics import PowerMetrics
from edge.store.port import AssetStore
from edge.usage import UsageRecorder, UsageReports
from edge.webhooks.dispatcher import WebhookServices
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


AnyConnection = ASGIConnection[Any, Any, Any, Any]
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


def read_client_address(connection: AnyConnection) -> str:
    """Return the address of the client, which `edge.http.middleware` has put in place of a trusted proxy's."""
    return connection.client.host if connection.client else ""


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
