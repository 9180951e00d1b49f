"""`/v1/deliveries` and `/v1/webhooks`: the delivery log, replays, owner-wide webhooks, and the signing secret."""

from typing import Annotated

import httpx2
from litestar import delete, get, post
from litestar.params import FromPath, QueryParameter
from msgspec import Meta, Struct

from edge.core.concurrency import translate_errors
from edge.core.validation import input_invalid_problem
from edge.http.auth import require_scope
from edge.http.dependencies import (
    AnyRequest,
    EdgeServices,
    OwnerDep,
    ServicesDep,
    get_or_head,
    parse_job_key,
    record_audit_event,
)
from edge.http.openapi import json_body
from edge.http.request_input import read_struct
from edge.webhooks.owner_webhooks import DeliveryFilters
from schemas.credentials import Scope
from schemas.installation import AuditAction
from schemas.job import FINAL_STATUSES, Moment, Status, Token
from schemas.problems import FieldError
from schemas.webhook import DeliveryAttempt, DeliveryLogRow, DeliveryState, OwnerWebhook, WebhookConfig


class DeliveryView(Struct, frozen=True, kw_only=True):
    """A delivery. `id`: the `webhook-id`. `job_status` and `revision`: the state of the job that it reports.

    `webhook`: the id of the owner-wide webhook; null: the webhook of the job.
    """

    id: str
    job_id: str
    revision: int
    job_status: Status
    url: str
    state: DeliveryState
    tries: tuple[DeliveryAttempt, ...]
    replays: int
    created_at: Moment
    next_at: Moment | None
    webhook: str | None = None


class DeliveryListView(Struct, frozen=True):
    """The deliveries of one job, sent and pending."""

    deliveries: list[DeliveryView]


class DeliveryPageView(Struct, frozen=True):
    """A page of the owner's deliveries, newest first.

    A page may have fewer deliveries than `limit`, or none, and still not be the last one: that has no `next_cursor`.
    """

    deliveries: list[DeliveryView]
    next_cursor: str | None = None


class SecretView(Struct, frozen=True):
    """The signing secret. Until `previous_until` deliveries carry a signature with the previous secret as well."""

    secret: str
    made_at: Moment
    previous_until: Moment | None = None


class SecretRotation(Struct, frozen=True, forbid_unknown_fields=True):
    """The new secret; without one the edge generates it."""

    secret: str | None = None


FINAL_STATES = tuple(status for status in Status if status in FINAL_STATUSES)


class OwnerWebhookRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A webhook for all jobs of the owner. Empty `endpoints` and `states`: all."""

    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://")]
    endpoints: Annotated[tuple[Token, ...], Meta(max_length=100)] = ()
    states: Annotated[tuple[Status, ...], Meta(max_length=len(FINAL_STATES))] = ()


class OwnerWebhookView(Struct, frozen=True, kw_only=True):
    """A webhook for all jobs of the owner. `disabled`: its URL answered 410, so nothing is sent to it."""

    id: str
    url: str
    endpoints: tuple[str, ...]
    states: tuple[Status, ...]
    created_at: Moment
    disabled: bool


class OwnerWebhookListView(Struct, frozen=True):
    """The owner-wide webhooks, oldest first."""

    webhooks: list[OwnerWebhookView]


class WebhookTestView(Struct, frozen=True, kw_only=True):
    """The outcome of a test message. `status`: of the receiver's answer; `error`: why it did not answer."""

    delivered: bool
    status: int | None
    error: str | None
    took_s: float


def _to_delivery_view(row: DeliveryLogRow) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        job_id=row.job_id,
        revision=row.revision,
        job_status=row.status,
        url=row.url,
        state=row.state,
        tries=row.attempts,
        replays=row.replays,
        created_at=row.created_at,
        next_at=row.next_attempt_at,
        webhook=row.webhook or None,
    )


@get_or_head("/v1/jobs/{job_id:str}/deliveries", guards=[require_scope(Scope.JOBS_READ)])
async def list_deliveries(services: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> DeliveryListView:
    """List the webhook deliveries of a job, oldest first. They are kept for 30 days."""
    key = parse_job_key(owner, job_id)
    await services.jobs.read(key)
    return DeliveryListView([_to_delivery_view(row) for row in await services.webhooks.delivery_log.list_for_job(key)])


@get_or_head("/v1/deliveries", guards=[require_scope(Scope.JOBS_READ)])
async def list_all_deliveries(
    services: ServicesDep,
    owner: OwnerDep,
    states: Annotated[list[DeliveryState] | None, QueryParameter(name="state")] = None,
    url: Annotated[str, QueryParameter(max_length=200)] = "",
    created_from: Annotated[Moment | None, QueryParameter(name="from")] = None,
    created_to: Annotated[Moment | None, QueryParameter(name="to")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> DeliveryPageView:
    """List the webhook deliveries of all jobs of the owner, newest first. They are kept for 30 days.

    `state` may be repeated. `url` occurs in the URL of the receiver. Continue with `next_cursor` until it is null.
    """
    filters = DeliveryFilters(tuple(states or ()), url, created_from, created_to)
    page = await services.webhooks.delivery_log.list_page(owner, filters, limit, cursor)
    return DeliveryPageView([_to_delivery_view(row) for row in page.rows], page.next_cursor)


@post("/v1/deliveries/{delivery_id:str}/replay", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)])
async def replay_delivery(services: ServicesDep, owner: OwnerDep, delivery_id: FromPath[str]) -> DeliveryView:
    """Send a delivery again, with the same `webhook-id`. A URL that a 410 disabled is enabled again."""
    return _to_delivery_view(await services.webhooks.delivery_log.replay(owner, delivery_id))


def _to_secret_view(config: WebhookConfig) -> SecretView:
    return SecretView(config.secret, config.created_at, config.previous_until)


@get("/v1/webhooks/secret", guards=[require_scope(Scope.JOBS_WRITE)])
async def read_secret(services: ServicesDep, owner: OwnerDep) -> SecretView:
    """Return the secret that signs the owner's deliveries."""
    with translate_errors():
        return _to_secret_view(await services.webhooks.secrets.get(owner))


@post(
    "/v1/webhooks/secret",
    status_code=200,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=json_body(SecretRotation),
)
async def rotate_secret(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> SecretView:
    """Replace the signing secret. For 24 h deliveries carry a signature with the old secret as well."""
    body = await read_struct(request, SecretRotation)
    config = await services.webhooks.secrets.rotate(owner, body.secret)
    await record_audit_event(request, services, AuditAction.WEBHOOK_SECRET_ROTATED, owner, owner=owner)
    return _to_secret_view(config)


def _to_webhook_view(webhook: OwnerWebhook, config: WebhookConfig | None) -> OwnerWebhookView:
    return OwnerWebhookView(
        id=webhook.id,
        url=webhook.url,
        endpoints=webhook.endpoints,
        states=webhook.states or FINAL_STATES,
        created_at=webhook.created_at,
        disabled=config is not None and webhook.url in config.disabled_urls,
    )


@get("/v1/webhooks", guards=[require_scope(Scope.JOBS_READ)])
async def list_webhooks(services: ServicesDep, owner: OwnerDep) -> OwnerWebhookListView:
    """List the owner-wide webhooks, oldest first."""
    with translate_errors():
        webhooks = await services.webhooks.owner_webhooks.list_webhooks(owner)
        config = await services.webhooks.secrets.get(owner) if webhooks else None
    return OwnerWebhookListView([_to_webhook_view(webhook, config) for webhook in webhooks])


@post(
    "/v1/webhooks",
    status_code=201,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=json_body(OwnerWebhookRequest),
)
async def add_webhook(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> OwnerWebhookView:
    """Add a webhook for the final states of all jobs of the owner. The same URL and filter again change nothing."""
    body = await read_struct(request, OwnerWebhookRequest)
    services.quotas.check_not_deleting(owner)
    wrong = [number for number, status in enumerate(body.states) if status not in FINAL_STATUSES]
    if wrong:
        fault = FieldError(f"$.states[{wrong[0]}]", f"is not a final state: use {', '.join(FINAL_STATES)}")
        raise input_invalid_problem(fault)
    added = await services.webhooks.owner_webhooks.add(owner, body.url, body.endpoints, body.states)
    if added.is_new:
        await _record(request, services, AuditAction.WEBHOOK_ADDED, added.webhook, owner)
    with translate_errors():
        return _to_webhook_view(added.webhook, await services.webhooks.secrets.get(owner))


@delete("/v1/webhooks/{webhook_id:str}", status_code=204, guards=[require_scope(Scope.JOBS_WRITE)])
async def delete_webhook(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, webhook_id: FromPath[str]
) -> None:
    """Delete an owner-wide webhook. Deliveries that wait for it are not sent any more."""
    removed = await services.webhooks.owner_webhooks.remove(owner, webhook_id)
    await _record(request, services, AuditAction.WEBHOOK_DELETED, removed, owner)


async def _record(
    request: AnyRequest, services: EdgeServices, action: AuditAction, webhook: OwnerWebhook, owner: str
) -> None:
    """Record the host of the URL only: its path and its query may be secrets."""
    details = {"host": httpx2.URL(webhook.url).host}
    await record_audit_event(request, services, action, webhook.id, owner=owner, details=details)


@post("/v1/webhooks/{webhook_id:str}/test", status_code=200, guards=[require_scope(Scope.JOBS_WRITE)])
async def send_test_delivery(services: ServicesDep, owner: OwnerDep, webhook_id: FromPath[str]) -> WebhookTestView:
    """Send a signed test message to an owner-wide webhook, once. A URL that answers 2xx is enabled again."""
    outcome = await services.webhooks.send_test(owner, webhook_id)
    return WebhookTestView(
        delivered=outcome.state is DeliveryState.DELIVERED,
        status=outcome.attempt.status,
        error=outcome.attempt.error,
        took_s=outcome.attempt.took_s,
    )


ROUTES = (
    *(list_deliveries, list_all_deliveries, replay_delivery, read_secret, rotate_secret),
    *(list_webhooks, add_webhook, delete_webhook, send_test_delivery),
)
