"""The next job's inputs, fetched while all slots are busy.

A work queue cannot be looked into with a runner's rights. So the next message is taken and given back at once: for
GIVEN_BACK_S no other host is offered it, then it is the first to be handed out again. Nothing of the job is claimed.
"""

from collections.abc import Awaitable, Callable, Mapping

import anyio

from bus.interface import QueueMessage
from runner.assets.port import AssetError
from runner.context import RunnerContext
from runner.endpoints import LocalEndpoint
from schemas.asset import InvalidDigest, asset_fields, parse_digest
from schemas.events import RecordUnreadable
from schemas.job import Job, Pointer
from schemas.status import Status

PEEK_NAK_DELAY_S = 0.05
PEEK_TIMEOUT_S = 5.0  # with a broker that has handed it out and takes nothing back


async def prefetch_inputs(
    life: RunnerContext, kinds: Mapping[str, LocalEndpoint], take: Callable[[], Awaitable[QueueMessage | None]]
) -> bool:
    """Bring the inputs of what `take` gives into the host's cache; whether it gave anything.

    Raises BusError. What cannot be fetched is left: the job will say why.
    """
    pointer = await _peek(take)
    job = await _read_queued_job(life, pointer) if pointer is not None else None
    if job is None or job.endpoint not in kinds:
        return pointer is not None
    for field in asset_fields(kinds[job.endpoint].config.input, job.input):
        try:
            await life.assets.prefetch(job.owner, parse_digest(field.value))
        except (AssetError, InvalidDigest, OSError) as error:
            life.bind_log(job).debug("not fetched ahead", why=str(error))
    return True


async def _peek(take: Callable[[], Awaitable[QueueMessage | None]]) -> Pointer | None:
    """Shielded: a message that was taken and is not given back is nobody's for half a minute."""
    with anyio.move_on_after(PEEK_TIMEOUT_S, shield=True):
        delivery = await take()
        if delivery is None:
            return None
        await delivery.nak(PEEK_NAK_DELAY_S)
        return delivery.pointer
    return None


async def _read_queued_job(life: RunnerContext, pointer: Pointer) -> Job | None:
    """The job of this round, if it waits."""
    try:
        entry = await life.bus.job_store.read(pointer.key)
    except RecordUnreadable:
        return None
    job = entry.record.job if entry else None
    return job if job is not None and (job.status, job.round) == (Status.QUEUED, pointer.round) else None
