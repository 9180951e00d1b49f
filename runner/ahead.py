"""The next job's inputs, fetched while all slots are busy.

A work queue cannot be looked into with a runner's rights. So the next message is taken and given back at once: for
GIVEN_BACK_S no other host is offered it, then it is the first to be handed out again. Nothing of the job is claimed.
"""

from collections.abc import Awaitable, Callable, Mapping

import anyio

from bus.port import Delivery
from runner.catalogue import Kind
from runner.life import Life
from runner.supplies import SuppliesError
from schemas.asset import InvalidDigest, asset_fields, parse
from schemas.events import RecordUnreadable
from schemas.job import Job, Pointer
from schemas.words import Status

GIVEN_BACK_S = 0.05
PATIENCE_S = 5.0  # with a broker that has handed it out and takes nothing back


async def fetch_ahead(life: Life, kinds: Mapping[str, Kind], take: Callable[[], Awaitable[Delivery | None]]) -> bool:
    """Bring the inputs of what `take` gives into the host's cache; whether it gave anything.

    Raises BusError. What cannot be fetched is left: the job will say why.
    """
    pointer = await _peeked(take)
    job = await _waiting(life, pointer) if pointer is not None else None
    if job is None or job.endpoint not in kinds:
        return pointer is not None
    for field in asset_fields(kinds[job.endpoint].endpoint.input, job.input):
        try:
            await life.supplies.fetch(job.owner, parse(field.value))
        except (SuppliesError, InvalidDigest, OSError) as error:
            life.log_of(job).debug("not fetched ahead", why=str(error))
    return True


async def _peeked(take: Callable[[], Awaitable[Delivery | None]]) -> Pointer | None:
    """Shielded: a message that was taken and is not given back is nobody's for half a minute."""
    with anyio.move_on_after(PATIENCE_S, shield=True):
        delivery = await take()
        if delivery is None:
            return None
        await delivery.later(GIVEN_BACK_S)
        return delivery.pointer
    return None


async def _waiting(life: Life, pointer: Pointer) -> Job | None:
    """The job of this round, if it waits."""
    try:
        entry = await life.bus.records.read(pointer.key)
    except RecordUnreadable:
        return None
    job = entry.recorded.job if entry else None
    return job if job is not None and (job.status, job.round) == (Status.QUEUED, pointer.round) else None
