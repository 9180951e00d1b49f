"""The composition root: builds every service of one edge and connects them. `edge.process` runs the result.

`edge.domain` builds the services of jobs and those below them. Services receive what they need as constructor
arguments, so the order of the calls is the order of the layers.
"""

import os
import platform
import random
import time
from datetime import timedelta
from typing import NamedTuple

from anyio.abc import TaskGroup

from bus.server.process import HostAccounts
from edge.core.clients import TrustedProxies
from edge.core.clock import utc_now
from edge.deletion import DeletionServices, OwnerDeletionService, OwnerDirectory
from edge.domain import Domain, EdgeResources, JobServices, build_domain, build_jobs
from edge.facades.heygem.facade import HeygemFacade, make_heygem_facade
from edge.hosts.enrollment import HostEnrollment
from edge.hosts.host_tokens import HostTokens, SilentHostRemover
from edge.hosts.registry import HostSamples
from edge.http.dependencies import EdgeServices
from edge.jobs.event_stream import EventStreams
from edge.jobs.job_actions import JobActionService
from edge.jobs.reconciler import IntervalTimer, ReconcileContext, ReconcilePolicy, Reconciler
from edge.jobs.service import JobService
from edge.notify.service import FactReader, FactSources, NotificationService, NotificationServices
from edge.notify.targets import build_senders
from edge.outbound import AllowList
from edge.owners.audit_log import AuditLog
from edge.owners.quotas import RequestLimiter, StreamLimiter
from edge.owners.signed_credentials import SessionIssuer, TokenIssuer
from edge.settings import EdgeSettings
from edge.usage import UsageRecorder, UsageReports
from edge.webhooks import dispatcher as webhooks

WEBHOOK_DEPENDENCIES = webhooks.WebhookDependencies(
    now=utc_now, monotonic=time.monotonic, entropy=os.urandom, random=random.random
)


class AssembledEdge(NamedTuple):
    """The services of one edge, what cleans up behind jobs and hosts, and the HeyGem facade if it is enabled."""

    services: EdgeServices
    reconciler: Reconciler
    silent_hosts: SilentHostRemover
    heygem: HeygemFacade | None


async def assemble_services(resources: EdgeResources) -> AssembledEdge:
    """Build the services of one edge. Nothing runs yet."""
    settings = resources.settings
    domain = await build_domain(resources)
    services = _make_services(resources, domain, build_jobs(resources, domain))
    services.webhooks.dispatcher.subscribe_states(services.notifications.on_state)
    services.form_dir.mkdir(mode=0o700, exist_ok=True)
    await services.audit.record_settings(settings, EdgeSettings(), platform.node(), domain.signing_secret)
    await services.usage_recorder.load_position()
    reconciler = Reconciler(_make_reconcile_context(settings, services), period_s=settings.reconcile_every_s)
    heygem = make_heygem_facade(settings.heygem, settings.data, resources.bus.job_store, resources.store, domain.index)
    return AssembledEdge(services, reconciler, _make_silent_host_remover(settings, services), heygem)


def _make_services(resources: EdgeResources, domain: Domain, jobs: JobServices) -> EdgeServices:
    settings, bus, server = resources.settings, resources.bus, resources.settings.server
    host_accounts = _make_host_accounts(settings)
    enrollment = HostEnrollment(bus, domain.api_keys, host_accounts, resources.addresses, utc_now)
    return EdgeServices(
        bus=bus,
        store=resources.store,
        assets=domain.assets,
        uploads=domain.uploads,
        endpoints=domain.endpoints,
        index=domain.index,
        publish_window=jobs.publish_window,
        readiness=jobs.readiness,
        input_waiter=jobs.input_waiter,
        url_fetcher=jobs.url_fetcher,
        webhooks=_make_webhooks(resources, domain, jobs),
        jobs=jobs.service,
        job_actions=JobActionService(bus.job_actions, jobs.service, domain.index, domain.leases, utc_now, os.urandom),
        event_streams=EventStreams(bus, jobs.views, domain.hosts),
        job_views=jobs.views,
        eta=jobs.eta,
        hosts=domain.hosts,
        host_samples=HostSamples(domain.hosts, settings.data / "host-samples.json", utc_now),
        wait_reasons=jobs.wait_reasons,
        api_keys=domain.api_keys,
        secrets=domain.secrets,
        tokens=TokenIssuer(domain.signing_secret, domain.api_keys.get, utc_now),
        sessions=SessionIssuer(
            domain.signing_secret, domain.api_keys.get, utc_now, os.urandom, bus.installation_constants
        ),
        url_signer=domain.url_signer,
        enrollment=enrollment,
        host_tokens=HostTokens(bus, enrollment, settings.hosts, utc_now, os.urandom),
        owners=OwnerDirectory(bus, domain.index, domain.api_keys),
        owner_deletions=_make_owner_deletions(resources, domain, jobs.service),
        quotas=domain.quotas,
        power=domain.power,
        usage_reports=UsageReports(bus.usage_log, domain.power.records, settings.prices, utc_now),
        usage_recorder=UsageRecorder(bus.usage_log, domain.index, domain.power.records, settings.prices),
        relay_hub=domain.relay_hub,
        notifications=_make_notifications(resources, domain),
        audit=AuditLog(bus.audit_log, utc_now, os.urandom, settings.data),
        trusted_proxies=TrustedProxies(server.trusted_proxies, requests_per_client=server.connections_per_address),
        form_dir=settings.data / "forms",
        data_dir=settings.data,
        metrics=domain.metrics,
        power_metrics=domain.power_metrics,
        now=utc_now,
        certificates=resources.certificates,
        request_limits=RequestLimiter(server.requests_per_minute, time.monotonic),
        stream_limits=StreamLimiter("event streams", server.streams_per_key, server.streams_per_owner),
    )


def _make_webhooks(resources: EdgeResources, domain: Domain, jobs: JobServices) -> webhooks.WebhookServices:
    return webhooks.build_webhooks(
        resources.bus,
        domain.index,
        jobs.views,
        resources.clients.untrusted,
        AllowList(resources.settings.outbound.allow),
        resources.settings.webhooks,
        WEBHOOK_DEPENDENCIES,
        domain.metrics,
    )


def _make_owner_deletions(resources: EdgeResources, domain: Domain, job_service: JobService) -> OwnerDeletionService:
    services = DeletionServices(
        bus=resources.bus,
        job_service=job_service,
        assets=domain.assets,
        uploads=domain.uploads,
        keys=domain.api_keys,
        secrets=domain.secrets,
        index=domain.index,
        quotas=domain.quotas,
    )
    return OwnerDeletionService(services, domain.leases, utc_now, resources.settings.trash)


def _make_notifications(resources: EdgeResources, domain: Domain) -> NotificationService:
    """Build the notifications. Raises TargetInvalid."""
    settings = resources.settings
    sources = FactSources(
        bus=resources.bus,
        index=domain.index,
        hosts=domain.hosts,
        power=domain.power,
        declared=settings.hosts,
        certificates=resources.certificates,
        disks={str(settings.data): settings.data},
        clock=utc_now,
        allow_unsynced=settings.allow_unsynced,
    )
    return NotificationService(
        settings.notify,
        NotificationServices(
            table=resources.bus.notices,
            facts=FactReader(sources),
            leases=domain.leases,
            senders=build_senders(settings.notify),
            clock=utc_now,
            random=random.random,
        ),
    )


def _make_host_accounts(settings: EdgeSettings) -> HostAccounts | None:
    enrollment = settings.enrollment
    if not (enrollment.nats_conf_dir and enrollment.reload_command):
        return None
    return HostAccounts(settings.broker, enrollment.nats_conf_dir, enrollment.reload_command)


def _make_silent_host_remover(settings: EdgeSettings, services: EdgeServices) -> SilentHostRemover:
    return SilentHostRemover(
        services.bus,
        services.host_tokens,
        services.index,
        services.audit,
        utc_now,
        timedelta(seconds=settings.enrollment.remove_after_s),
    )


def _make_reconcile_context(settings: EdgeSettings, services: EdgeServices) -> ReconcileContext:
    policy = ReconcilePolicy(
        low_max_wait=timedelta(seconds=settings.low_max_wait_s), retention=timedelta(days=settings.retention_days)
    )
    return ReconcileContext(
        bus=services.bus,
        index=services.index,
        publish_window=services.publish_window,
        hosts=services.hosts,
        assets=services.assets,
        input_waiter=services.input_waiter,
        now=utc_now,
        index_check_timer=IntervalTimer(policy.check_interval, utc_now()),
        orphan_timer=IntervalTimer(policy.check_interval, utc_now()),
        power_probe=services.power,
        policy=policy,
    )


def start_tasks(tasks: TaskGroup, edge: AssembledEdge) -> None:
    """Start the background tasks of every service. They run until `tasks` is cancelled."""
    services = edge.services
    runs = [
        services.index.run,
        services.uploads.run,
        services.publish_window.run,
        services.hosts.run,
        services.event_streams.run,
        services.url_fetcher.run,
        services.input_waiter.run,
        services.webhooks.dispatcher.run,
        services.power.run,
        services.usage_recorder.run,
        services.api_keys.run,
        services.secrets.run,
        services.owner_deletions.run,
        services.job_actions.run,
        services.audit.run,
        services.notifications.run,
        services.host_samples.run,
        edge.reconciler.run,
        edge.silent_hosts.run,
    ]
    if edge.heygem is not None:
        runs.append(edge.heygem.result_exporter.run)
    for run in runs:
        tasks.start_soon(run)
