"""Webhooks as their owner sees them: what was delivered, sending it anew, the signing secret."""

from litestar import get, post
from litestar.params import FromPath
from msgspec import Struct

from edge.auth.keys import needs
from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Owner, Services, get_or_head
from edge.routes.jobs import job_key
from edge.services.refusals import refusing
from schemas.access import Scope
from schemas.job import Moment
from schemas.webhook import DeliveryRow, DeliveryState, Hooks, Try
from schemas.words import Status


class DeliveryView(Struct, frozen=True, kw_only=True):
    """A delivery on the wire. `id` is the `webhook-id`; `job_status` and `revision` say which state it tells."""

    id: str
    job_id: str
    revision: int
    job_status: Status
    url: str
    state: DeliveryState
    tries: tuple[Try, ...]
    replays: int
    created_at: Moment
    next_at: Moment | None


class Deliveries(Struct, frozen=True):
    """What was, and is to be, delivered of one job."""

    deliveries: list[DeliveryView]


class SecretView(Struct, frozen=True):
    """`previous_until`: until then deliveries are signed with the secret before this one too."""

    secret: str
    made_at: Moment
    previous_until: Moment | None = None


class Rotation(Struct, frozen=True, forbid_unknown_fields=True):
    """The secret to take; one is made when none is given."""

    secret: str | None = None


def _shown(row: DeliveryRow) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        job_id=row.job_id,
        revision=row.revision,
        job_status=row.status,
        url=row.url,
        state=row.state,
        tries=row.tries,
        replays=row.replays,
        created_at=row.created_at,
        next_at=row.next_at,
    )


@get_or_head("/v1/jobs/{job_id:str}/deliveries", guards=[needs(Scope.JOBS_READ)])
async def list_deliveries(parts: Services, owner: Owner, job_id: FromPath[str]) -> Deliveries:
    """The deliveries of the job's webhook, oldest first, for 30 days."""
    key = job_key(owner, job_id)
    await parts.intake.read(key)
    return Deliveries([_shown(row) for row in await parts.webhooks.ledger.of(key)])


@post("/v1/deliveries/{delivery_id:str}/replay", status_code=202, guards=[needs(Scope.JOBS_WRITE)])
async def replay_delivery(parts: Services, owner: Owner, delivery_id: FromPath[str]) -> DeliveryView:
    """Deliver it anew, under the same `webhook-id`. A URL that was disabled by a 410 counts as back."""
    return _shown(await parts.webhooks.ledger.replay(owner, delivery_id))


def _secret(hooks: Hooks) -> SecretView:
    return SecretView(hooks.secret, hooks.made_at, hooks.previous_until)


@get("/v1/webhooks/secret", guards=[needs(Scope.JOBS_WRITE)])
async def read_secret(parts: Services, owner: Owner) -> SecretView:
    """The secret that the owner's deliveries are signed with."""
    with refusing():
        return _secret(await parts.webhooks.secrets.of(owner))


@post("/v1/webhooks/secret", status_code=200, guards=[needs(Scope.JOBS_WRITE)], operation_class=body_of(Rotation))
async def rotate_secret(request: AnyRequest, parts: Services, owner: Owner) -> SecretView:
    """A new secret, given or made; for 24 h deliveries carry a signature by the old one too."""
    asked = await read_struct(request, Rotation)
    return _secret(await parts.webhooks.secrets.rotate(owner, asked.secret))


ROUTES = (list_deliveries, replay_delivery, read_secret, rotate_secret)
