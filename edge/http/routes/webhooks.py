"""Webhooks as their owner sees them: what was delivered, sending it anew, the signing secret."""

from litestar import get, post
from litestar.params import FromPath
from msgspec import Struct

from edge.core.error_handling import translate_errors
from edge.http.auth import require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head, parse_job_key
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from schemas.auth import Scope
from schemas.job import Moment
from schemas.status import Status
from schemas.webhook import DeliveryAttempt, DeliveryLogRow, DeliveryState, WebhookConfig


class DeliveryView(Struct, frozen=True, kw_only=True):
    """A delivery on the wire. `id` is the `webhook-id`; `job_status` and `revision` say which state it tells."""

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
    """What was, and is to be, delivered of one job."""

    deliveries: list[DeliveryView]


class SecretView(Struct, frozen=True):
    """`previous_until`: until then deliveries are signed with the secret before this one too."""

    secret: str
    made_at: Moment
    previous_until: Moment | None = None


class SecretRotation(Struct, frozen=True, forbid_unknown_fields=True):
    """The secret to take; one is made when none is given."""

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
async def list_deliveries(parts: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> DeliveryListView:
    """The deliveries of the job's webhook, oldest first, for 30 days."""
    key = parse_job_key(owner, job_id)
    await parts.jobs.read(key)
    return DeliveryListView([_to_delivery_view(row) for row in await parts.webhooks.delivery_log.list_for_job(key)])


@post("/v1/deliveries/{delivery_id:str}/replay", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)])
async def replay_delivery(parts: ServicesDep, owner: OwnerDep, delivery_id: FromPath[str]) -> DeliveryView:
    """Deliver it anew, under the same `webhook-id`. A URL that was disabled by a 410 counts as back."""
    return _to_delivery_view(await parts.webhooks.delivery_log.replay(owner, delivery_id))


def _to_secret_view(hooks: WebhookConfig) -> SecretView:
    return SecretView(hooks.secret, hooks.created_at, hooks.previous_until)


@get("/v1/webhooks/secret", guards=[require_scope(Scope.JOBS_WRITE)])
async def read_secret(parts: ServicesDep, owner: OwnerDep) -> SecretView:
    """The secret that the owner's deliveries are signed with."""
    with translate_errors():
        return _to_secret_view(await parts.webhooks.secrets.get(owner))


@post(
    "/v1/webhooks/secret",
    status_code=200,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=json_body(SecretRotation),
)
async def rotate_secret(request: AnyRequest, parts: ServicesDep, owner: OwnerDep) -> SecretView:
    """A new secret, given or made; for 24 h deliveries carry a signature by the old one too."""
    asked = await read_struct(request, SecretRotation)
    return _to_secret_view(await parts.webhooks.secrets.rotate(owner, asked.secret))


ROUTES = (list_deliveries, replay_delivery, read_secret, rotate_secret)
