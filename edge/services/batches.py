"""Many submits in one request: each is accepted or rejected by itself."""

from collections.abc import Sequence
from typing import Any

from anyio import CapacityLimiter, create_task_group
from msgspec import Struct

from edge.services.inputs import invalid
from edge.services.intake import Accepted, Intake
from schemas.errors import FieldError, Problem, Refused

BATCH = 1000  # jobs of one request
AT_ONCE = 16


class Rejected(Struct, frozen=True):
    """One that was not accepted: which of the request, from 0, and why."""

    index: int
    problem: Problem


class Batch(Struct, frozen=True):
    """What became of a batch; both in the order of the request."""

    accepted: tuple[Accepted, ...]
    rejected: tuple[Rejected, ...]


async def submit_batch(
    intake: Intake,
    owner: str,
    bodies: Sequence[Any],
    *,
    idempotency_key: str | None = None,
    trace_id: str | None = None,
) -> Batch:
    """Submit each of `bodies`. With an idempotency key the same batch again is the same jobs, one by one.

    Raises Refused `input_invalid` when there are more than BATCH, or none.
    """
    if not 0 < len(bodies) <= BATCH:
        raise invalid(FieldError("$.jobs", f"a batch has 1 to {BATCH} jobs, this one {len(bodies)}"))
    results: list[Accepted | Problem | None] = [None] * len(bodies)
    places = CapacityLimiter(AT_ONCE)

    async def submit(index: int, body: Any) -> None:
        async with places:
            try:
                if not isinstance(body, dict):
                    raise invalid(FieldError(f"$.jobs[{index}]", "is no object"))
                key = None if idempotency_key is None else f"{idempotency_key}\n{index}"
                results[index] = await intake.submit(owner, body, idempotency_key=key, trace_id=trace_id)
            except Refused as error:
                results[index] = error.problem

    async with create_task_group() as tasks:
        for index, body in enumerate(bodies):
            tasks.start_soon(submit, index, body)
    return Batch(
        tuple(result for result in results if isinstance(result, Accepted)),
        tuple(Rejected(index, result) for index, result in enumerate(results) if isinstance(result, Problem)),
    )
