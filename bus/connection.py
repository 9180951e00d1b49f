"""Opening the bus over a real broker: as the edge, which owns the topology, or as a runner, which only binds."""

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import anyio
import httpx
import structlog

from bus.buckets import (
    AGREED,
    ASSETS,
    DELIVERED,
    ERASURES,
    HOOKS,
    HOSTS,
    JOINED,
    KEYS,
    LEASES,
    OFFERS,
    POWER,
    TOMBSTONES,
)
from bus.control import CoreControl
from bus.feed import StreamFeed
from bus.jetstream import JetStream
from bus.jobs import JobsQueue
from bus.link import WireLink
from bus.outbox import StreamOutbox
from bus.port import Bus, BusError
from bus.settings import BrokerSettings
from bus.state import StateRecords
from bus.table import BucketTable
from bus.topology import ensure, ensure_shared
from bus.unbroken import Unbroken
from bus.usage import StreamLedger
from bus.users import inbox
from bus.wire import Wire
from schemas.access import Agreed, ApiKey
from schemas.asset import Reference
from schemas.erasure import Erasure
from schemas.host import Offer, Presence, Tombstone
from schemas.joining import Joined
from schemas.lease import Lease
from schemas.power import PowerRecord
from schemas.webhook import DeliveryRow, Hooks

MONITOR_S = 5.0
SWEEP_EVERY_S = 600.0
MARKER_AGE = timedelta(hours=1)

log = structlog.get_logger(__name__)


class _Parts(NamedTuple):
    """The parts of a bus that have something to do when the connection changes."""

    js: JetStream
    link: WireLink
    records: StateRecords
    queue: JobsQueue

    def bus(self, *, may_erase: bool) -> Bus:
        """All of it."""
        js = self.js
        return Bus(
            link=self.link,
            records=self.records,
            queue=self.queue,
            feed=StreamFeed(js),
            control=CoreControl(js.wire),
            hosts=BucketTable(js, HOSTS, Presence, may_erase=may_erase),
            offers=BucketTable(js, OFFERS, Offer, may_erase=may_erase),
            keys=BucketTable(js, KEYS, ApiKey, may_erase=may_erase),
            assets=BucketTable(js, ASSETS, Reference, may_erase=may_erase),
            tombstones=BucketTable(js, TOMBSTONES, Tombstone, may_erase=may_erase),
            power=BucketTable(js, POWER, PowerRecord, may_erase=may_erase),
            hooks=BucketTable(js, HOOKS, Hooks, may_erase=may_erase),
            delivered=BucketTable(js, DELIVERED, DeliveryRow, may_erase=may_erase),
            leases=BucketTable(js, LEASES, Lease, may_erase=may_erase),
            outbox=StreamOutbox(js),
            agreed=BucketTable(js, AGREED, Agreed, may_erase=may_erase),
            joined=BucketTable(js, JOINED, Joined, may_erase=may_erase),
            erasures=BucketTable(js, ERASURES, Erasure, may_erase=may_erase),
            usage=StreamLedger(js),
        )


@asynccontextmanager
async def open_edge(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """The edge's bus: makes the topology on every new connection, and removes old delete markers.

    Raises Unreachable when no broker answers, Denied when it refuses the user. Afterwards it dials for ever.
    """
    async with _parts(settings) as parts:

        async def set_up() -> None:
            await ensure(parts.js, settings.replicas)
            await ensure_shared(parts.js)
            await parts.queue.ensure_again()

        async def sweep() -> None:
            while True:
                await _sweep(parts.records)
                await anyio.sleep(SWEEP_EVERY_S)

        parts.js.wire.set_up.append(set_up)
        async with _kept(parts, sweep):
            yield parts.bus(may_erase=True)


@asynccontextmanager
async def open_runner(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """A runner's bus: needs exactly the rights of `bus.users.runner`. Raises as `open_edge` does."""
    async with _parts(settings) as parts, _kept(parts):
        yield parts.bus(may_erase=False)


@asynccontextmanager
async def _parts(settings: BrokerSettings) -> AsyncIterator[_Parts]:
    # Reading the system's certificates takes longer than all the rest of opening.
    secure = settings.monitor.startswith("https:")
    async with httpx.AsyncClient(base_url=settings.monitor, timeout=MONITOR_S, verify=secure) as monitor:
        js = JetStream(Wire(settings, inbox(settings.user), secrets.token_hex(8)))
        link = WireLink(js, monitor if settings.monitor else None, Unbroken())
        yield _Parts(js, link, StateRecords(js), JobsQueue(js))


@asynccontextmanager
async def _kept(parts: _Parts, *tasks: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The connection, dialled once and then kept, with `tasks` beside it.

    An error of the body leaves as itself, not in the group's ExceptionGroup.
    """
    wire = parts.js.wire
    wire.went_up.append(parts.link.went_up)
    wire.went_down.append(parts.link.went_down)
    raised: Exception | None = None
    async with wire.listening("wake.*", parts.queue.heard_wake):
        await wire.open()
        async with anyio.create_task_group() as group:
            group.start_soon(wire.keep)
            for task in tasks:
                group.start_soon(task)
            try:
                yield
            except Exception as error:
                raised = error
            group.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def _sweep(records: StateRecords) -> None:
    try:
        await records.sweep(datetime.now(UTC), MARKER_AGE)
        await records.trim()
    except BusError as error:
        log.warning("old delete markers and revisions stay for now", error=str(error))
