"""`/v1/batches`: up to a thousand submits in one request."""

from typing import Annotated, Any

from litestar import post
from litestar.params import HeaderParameter
from msgspec import Meta, Struct

from edge.auth.keys import needs
from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Asking, Owner, Services
from edge.services.batches import BATCH, Rejected, submit_batch
from schemas.access import Scope
from schemas.job import Submission
from schemas.view import JobView


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The body as clients should send it."""

    jobs: Annotated[list[Submission], Meta(min_length=1, max_length=BATCH)]


class _Bodies(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: list[Any]  # each is judged by itself


class BatchView(Struct, frozen=True):
    """What became of a batch. `rejected[].index` counts from 0 in the request."""

    accepted: list[JobView]
    rejected: list[Rejected]


@post("/v1/batches", status_code=202, guards=[needs(Scope.JOBS_WRITE)], operation_class=body_of(BatchBody))
async def submit_jobs(
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    asker: Asking,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
) -> BatchView:
    """Accept up to 1000 jobs, each durably and by itself: what is wrong with one rejects no other."""
    asked = await read_struct(request, _Bodies)
    batch = await submit_batch(
        parts.intake, owner, asked.jobs, idempotency_key=idempotency_key, trace_id=request.headers.get("x-trace-id")
    )
    views = await parts.viewer.jobs([accepted.entry for accepted in batch.accepted], asker)
    return BatchView(views, list(batch.rejected))


ROUTES = (submit_jobs,)
