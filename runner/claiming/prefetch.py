"""Prefetch of the next job's inputs while all slots are busy.

A runner has no right to look into the work queue. So it takes the next message and returns it at once: no other host
gets it for PEEK_NAK_DELAY_S, and then it is delivered first again. Nothing of the job is claimed.
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
PEEK_TIMEOUT_S = 5.0  # a broker may deliver the message and then not accept the nak


async def prefetch_inputs(
    context: RunnerContext, endpoints: Mapping[str, LocalEndpoint], fetch: Callable[[], Awaitable[QueueMessage | None]]
) -> bool:
    """Fetch the inputs of the job of the next message into the cache; return whether there was a message.

    Raises BusError. An input that cannot be fetched is skipped: the job will report why.
    """
    pointer = await _peek(fetch)
    job = await _read_queued_job(context, pointer)
    if job is None or job.endpoint not in endpoints:
        return pointer is not None
    for field in asset_fields(endpoints[job.endpoint].config.input, job.input):
        try:
            await context.assets.prefetch(job.owner, parse_digest(field.value))
        except (AssetError, InvalidDigest, OSError) as error:
            context.bind_log(job).debug("prefetch_failed", error=str(error))
    return True


async def peek_job(context: RunnerContext, fetch: Callable[[], Awaitable[QueueMessage | None]]) -> Job | None:
    """Return the job of the next message, if it is queued. Nothing of it is claimed. Raises BusError."""
    return await _read_queued_job(context, await _peek(fetch))


async def _peek(fetch: Callable[[], Awaitable[QueueMessage | None]]) -> Pointer | None:
    """Take a message and return it at once.

    Shielded: a message that is fetched and not returned is invisible to every runner for half a minute.
    """
    with anyio.move_on_after(PEEK_TIMEOUT_S, shield=True):
        delivery = await fetch()
        if delivery is None:
            return None
        await delivery.nak(PEEK_NAK_DELAY_S)
        return delivery.pointer
    return None


async def _read_queued_job(context: RunnerContext, pointer: Pointer | None) -> Job | None:
    """Return the job of this round if it is queued."""
    if pointer is None:
        return None
    try:
        entry = await context.bus.job_store.read(pointer.key)
    except RecordUnreadable:
        return None
    job = entry.record.job if entry else None
    return job if job is not None and (job.status, job.round) == (Status.QUEUED, pointer.round) else None
