"""What the routes work with: every service of one edge, wired by `edge.app`."""

from functools import partial
from pathlib import Path
from typing import Any

from litestar import Request, WebSocket, route
from litestar.di import NamedDependency
from msgspec import Struct, field

from bus.interface import Bus
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService
from edge.core.client_throttle import AuthFailureThrottle, ThrottledClientLog, TrustedProxies
from edge.core.messages import Language
from edge.core.signed_urls import UrlSigner
from edge.deletion import OwnerDeletionService
from edge.facades.heygem.result_export import ResultExporter
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.enrollment import HostEnrollment
from edge.hosts.registry import HostRegistry
from edge.index.index import JobIndex
from edge.jobs.event_stream import EventStreams
from edge.jobs.input_waiter import InputWaiter
from edge.jobs.publish_window import PublishWindow
from edge.jobs.readiness import BrokerReadiness
from edge.jobs.service import JobService
from edge.jobs.url_inputs import UrlInputFetcher
from edge.jobs.view import Asker, JobViewBuilder
from edge.jobs.wait_reason import WaitReasons
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from edge.owners.quotas import OwnerQuotas, StreamLimiter
from edge.owners.tokens import TokenIssuer
from edge.power.controller import PowerController
from edge.power.relay_hub import RelayHub
from edge.settings import EdgeSettings
from edge.store.port import AssetStore
from edge.usage.recorder import UsageRecorder
from edge.usage.report import UsageReports
from edge.webhooks.dispatcher import WebhookServices
from schemas.ids import JobKey, is_token
from schemas.problems import ProblemError


class EdgeServices(Struct, frozen=True, kw_only=True):
    """The services of one edge process. `forms`: the folder for files of forms that are being read."""

    settings: EdgeSettings
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
    event_streams: EventStreams
    job_views: JobViewBuilder
    hosts: HostRegistry
    wait_reasons: WaitReasons
    api_keys: ApiKeyStore
    tokens: TokenIssuer
    url_signer: UrlSigner
    enrollment: HostEnrollment
    result_export: ResultExporter
    owner_deletions: OwnerDeletionService
    quotas: OwnerQuotas
    power: PowerController
    usage_reports: UsageReports
    usage_recorder: UsageRecorder
    relay_hub: RelayHub
    audit: AuditLog
    form_dir: Path
    stream_limits: StreamLimiter
    socket_limits: StreamLimiter
    trusted_proxies: TrustedProxies
    client_events: ThrottledClientLog = field(default_factory=ThrottledClientLog)
    auth_failures: AuthFailureThrottle = field(default_factory=AuthFailureThrottle)


# MERGED edge/routes/given.py: What routes are given: the request, the edge's services, whose things are meant, who
# asks and in what language.


AnyRequest = Request[Any, Any, Any]
AnySocket = WebSocket[Any, Any, Any]
ServicesDep = NamedDependency[EdgeServices]
OwnerDep = NamedDependency[str]
LanguageDep = NamedDependency[Language]
Asking = NamedDependency[Asker]

# RFC 9110, 9.1: whoever answers GET answers HEAD. Litestar does not do it by itself; streams are left out.
get_or_head = partial(route, http_method=["GET", "HEAD"])


def read_content_length(request: AnyRequest) -> int | None:
    """The size of the body where the request says it; the server lets no more through."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdecimal() else None


def parse_job_key(owner: OwnerDep, job_id: str) -> JobKey:
    """The key of a path; Refused input_invalid when the id could be none."""
    if not is_token(job_id):
        raise ProblemError("input_invalid", "a job id is 1 to 64 of A-Z a-z 0-9 _ -")
    return JobKey(owner, job_id)
