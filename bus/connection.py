"""Opening the bus over a real broker: as the edge, which owns the topology, or as a runner, which only binds."""

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import anyio
import msgspec
import structlog
from msgspec import Struct

from bus.accounts import GLOBAL
from bus.backup import Snapshots
from bus.buckets import (
    AGREED,
    ASSETS,
    AUDIT,
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
from bus.monitor import Monitors, monitor
from bus.outbox import StreamOutbox
from bus.port import Bus, BusError
from bus.readers import ReaderDesk
from bus.settings import BrokerSettings
from bus.state import StateRecords
from bus.table import BucketTable
from bus.topology import ensure, ensure_shared
from bus.unbroken import Unbroken
from bus.usage import StreamLedger
from bus.users import inbox
from bus.wire import Wire, status
from schemas.access import Agreed, ApiKey
from schemas.asset import Reference
from schemas.audit import AuditEvent
from schemas.erasure import Erasure
from schemas.host import Offer, Presence, Tombstone
from schemas.joining import Joined
from schemas.lease import Lease
from schemas.power import PowerRecord
from schemas.webhook import DeliveryRow, Hooks

SWEEP_EVERY_S = 600.0
MARKER_AGE = timedelta(hours=1)

log = structlog.get_logger(__name__)


class _Parts(NamedTuple):
    """The parts of a bus that have something to do when the connection changes."""

    js: JetStream
    link: WireLink
    records: StateRecords
    queue: JobsQueue

    def bus(self, *, as_edge: bool) -> Bus:
        """All of it."""
        js = self.js
        return Bus(
            link=self.link,
            records=self.records,
            queue=self.queue,
            feed=StreamFeed(js),
            control=CoreControl(js.wire),
            hosts=BucketTable(js, HOSTS, Presence, as_edge=as_edge),
            offers=BucketTable(js, OFFERS, Offer, as_edge=as_edge),
            keys=BucketTable(js, KEYS, ApiKey, as_edge=as_edge),
            assets=BucketTable(js, ASSETS, Reference, as_edge=as_edge),
            tombstones=BucketTable(js, TOMBSTONES, Tombstone, as_edge=as_edge),
            power=BucketTable(js, POWER, PowerRecord, as_edge=as_edge),
            hooks=BucketTable(js, HOOKS, Hooks, as_edge=as_edge),
            delivered=BucketTable(js, DELIVERED, DeliveryRow, as_edge=as_edge),
            leases=BucketTable(js, LEASES, Lease, as_edge=as_edge),
            outbox=StreamOutbox(js),
            agreed=BucketTable(js, AGREED, Agreed, as_edge=as_edge),
            joined=BucketTable(js, JOINED, Joined, as_edge=as_edge),
            erasures=BucketTable(js, ERASURES, Erasure, as_edge=as_edge),
            audit=BucketTable(js, AUDIT, AuditEvent, as_edge=as_edge),
            usage=StreamLedger(js),
        )


@asynccontextmanager
async def open_edge(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """The edge's bus: makes the topology on every new connection, removes old delete markers, serves readers.

    Raises Unreachable when no broker answers, Denied when it refuses the user. Afterwards it dials for ever.
    """
    async with _parts(settings) as parts:

        async def set_up() -> None:
            await _warn_of_one_account(parts.js.wire)
            await ensure(parts.js, settings.replicas)
            await ensure_shared(parts.js)
            await parts.queue.ensure_again()

        async def sweep() -> None:
            while True:
                await _sweep(parts.records)
                await anyio.sleep(SWEEP_EVERY_S)

        parts.js.wire.set_up.append(set_up)
        async with _kept(parts, sweep, ReaderDesk(parts.js.wire).serve):
            yield parts.bus(as_edge=True)


@asynccontextmanager
async def open_runner(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """A runner's bus: needs exactly the rights of `bus.users.runner`. Raises as `open_edge` does."""
    async with _parts(settings) as parts, _kept(parts):
        yield parts.bus(as_edge=False)


@asynccontextmanager
async def open_keeper(settings: BrokerSettings) -> AsyncIterator[tuple[Bus, Snapshots]]:
    """The edge's bus as it finds the broker: nothing is made. For backup and restore; raises as `open_edge` does."""
    async with _parts(settings) as parts, _kept(parts):
        yield parts.bus(as_edge=True), Snapshots(parts.js)


@asynccontextmanager
async def _parts(settings: BrokerSettings) -> AsyncIterator[_Parts]:
    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(monitor(url)) for url in settings.monitor.split(",") if url]
        js = JetStream(Wire(settings, inbox(settings.user), secrets.token_hex(8)))
        link = WireLink(js, Monitors(clients, anyio.current_time) if clients else None, Unbroken())
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


class _Who(Struct, frozen=True):
    account: str = ""


class _UserInfo(Struct, frozen=True):
    """What the broker says of a connection's user."""

    data: _Who = _Who()


async def _warn_of_one_account(wire: Wire) -> None:
    """Say that a broker set up for an earlier release, without accounts, protects nothing from its hosts."""
    said = await wire.request("$SYS.REQ.USER.INFO")
    if not status(said) and msgspec.json.decode(said.data, type=_UserInfo).data.account == GLOBAL:
        log.warning(
            "the broker has no accounts: whoever has the broker password of a host or a reader can write anything; "
            "move it as docs/hosts.md says"
        )


async def _sweep(records: StateRecords) -> None:
    try:
        await records.sweep(datetime.now(UTC), MARKER_AGE)
        await records.trim()
    except BusError as error:
        log.warning("old delete markers and revisions stay for now", error=str(error))
