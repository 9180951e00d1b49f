"""`/v1/deliveries` and `/v1/webhooks`: the delivery log, replays, and the signing secret."""

from typing import Annotated

from litestar import get, post
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from edge.core.error_handling import translate_errors
from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head, parse_job_key
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from edge.webhooks.delivery_log import DeliveryFilters
from schemas.auth import Scope
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.status import Status
from schemas.webhook import DeliveryAttempt, DeliveryLogRow, DeliveryState, WebhookConfig


class DeliveryView(Struct, frozen=True, kw_only=True):
    """A delivery. `id`: the `webhook-id`. `job_status` and `revision`: the state of the job that it reports."""

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


ROUTES = (list_deliveries, list_all_deliveries, replay_delivery, read_secret, rotate_secret)
