"""Deleting a whole owner: a durable job of its own, done again and again until nothing is found any more.

A row of ERASURES says that it is wanted and what went so far; whichever edge holds the lease does it, so that it goes
on after a crash. Nothing new of the owner is taken meanwhile, and because other edges learn of that seconds later, it
is done only when nothing was found for a while. Every step counts what it removed, and may be cut off anywhere.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import islice

import structlog
from anyio import CapacityLimiter, Event, create_task_group, move_on_after
from msgspec import Struct, structs

from bus.port import Bus, BusError, Conflict, Unreadable
from edge.services.assets import TRASH_FOR, Assets
from edge.services.clock import Clock
from edge.services.index import Index
from edge.services.intake import Intake
from edge.services.keys import Keys
from edge.services.leases import Leases
from edge.services.quotas import Quotas
from edge.services.refusals import refusing
from edge.services.uploads import Uploads
from edge.store.port import StoreError
from schemas.access import Scope
from schemas.erasure import Erased, Erasure, ErasureState
from schemas.errors import Refused
from schemas.events import RecordUnreadable
from schemas.job import JobKey
from schemas.words import FINAL

LOOK_EVERY_S = 2.0  # another edge refuses an owner this long after the first, at the latest
SETTLE = timedelta(seconds=10)  # a key is known elsewhere for 5 s, and what it began may take as long
_PLACE = "erasures"  # of its leases
_AT_ONCE = 8
_CHUNK = 200  # jobs between two words about the progress
_TRIES = 50

_log = structlog.get_logger()


class Reach(Struct, frozen=True, kw_only=True):
    """The services that hold things of an owner."""

    bus: Bus
    intake: Intake
    assets: Assets
    uploads: Uploads
    keys: Keys
    index: Index
    quotas: Quotas


class Erasures:
    """`run` does what is asked for with `begin`. `trash_for`: how long deleted bytes lie in the store's trash."""

    def __init__(self, reach: Reach, leases: Leases, clock: Clock, trash_for: timedelta = TRASH_FOR) -> None:
        self._reach = reach
        self._bus = reach.bus
        self._leases = leases
        self._clock = clock
        self._settle = trash_for + SETTLE
        self._woken = Event()

    async def begin(self, owner: str, by: str = "") -> Erasure:
        """Delete the owner from now on; asked again it is the same deletion, a new one if things came since.

        Raises Refused `conflict` for an owner that a host goes by.
        """
        with refusing():
            keys = await self._reach.keys.list(owner)
            if any(Scope.RUNNER in key.scopes for key in keys):
                raise Refused("conflict", f"{owner} has the key of a host: remove that host, or revoke the key, first")
            row = await self._bus.erasures.get(owner)
            if row is not None and (row.value.state is not ErasureState.DONE or not await self._anything(owner)):
                return row.value
            asked = Erasure(owner=owner, asked_at=self._clock(), by=by)
            try:
                await self._bus.erasures.update(owner, asked, row.revision if row else 0)
            except Conflict:
                return await self.begin(owner, by)
        self._reach.quotas.closed |= {owner}
        self._woken.set()
        return asked

    async def report(self, owner: str) -> Erasure:
        """How far it is. Refused `not_found` when it was never asked for, or a month ago."""
        with refusing():
            row = await self._bus.erasures.get(owner)
        if row is None:
            raise Refused("not_found", f"no deletion of {owner} was asked for")
        return row.value

    async def _anything(self, owner: str) -> bool:
        jobs = {count.owner for count in self._reach.index.counts()}
        return owner in jobs or bool(await self._bus.assets.keys(f"{owner}.>") or await self._reach.keys.list(owner))

    async def run(self) -> None:
        """Without end, from when the index has caught up."""
        await self._reach.index.ready()
        while True:
            try:
                await self.sweep()
            except (BusError, Refused, StoreError) as error:
                _log.warning("erasures_put_off", error=str(error))
            with move_on_after(LOOK_EVERY_S):
                await self._woken.wait()
            self._woken = Event()

    async def sweep(self) -> None:
        """One look at what is asked for, and one step of each. Raises BusError, Refused, StoreError."""
        rows = await self._bus.erasures.rows()
        wanted = {owner for owner, row in rows.items() if row.value.state is not ErasureState.DONE}
        self._reach.quotas.closed = frozenset(wanted)
        for owner in sorted(wanted):
            # Every edge has a folder of its own for them.
            await self._tell(owner, Erased(uploads=await self._reach.uploads.remove_all(owner)))
            async with self._leases.held(_PLACE, owner) as mine:
                if mine:
                    await self._step(owner)

    async def _step(self, owner: str) -> None:
        found = await self._tell(owner, Erased(keys=await self._keys(owner)))
        jobs = iter(sorted(key for key in await self._bus.records.keys() if key.owner == owner))
        living = 0
        while some := list(islice(jobs, _CHUNK)):
            gone, left = await self._jobs(some)
            living += left
            found += await self._tell(owner, gone, waiting_for=living)
        if living:
            return
        found += await self._tell(owner, await self._said(owner), waiting_for=0)
        if any(count.owner == owner for count in self._reach.index.counts()):
            return  # the index is behind: it would still find jobs that name the files
        dropped = [await self._drop(owner, name) for name in await self._bus.assets.keys(f"{owner}.>")]
        gone = Erased(assets=len(dropped), bytes=sum(size for size, _ in dropped))
        found += await self._tell(owner, gone, hosts={host for _, hosts in dropped for host in hosts})
        await self._judge(owner, found)

    async def _keys(self, owner: str) -> int:
        keys = await self._reach.keys.list(owner)
        for key in keys:
            await self._reach.keys.revoke(key.id)
        return len(keys)

    async def _jobs(self, keys: Sequence[JobKey]) -> tuple[Erased, int]:
        """Stop and delete them; what went, and how many still run."""
        results: list[Erased | None] = []
        errors: list[Exception] = []
        places = CapacityLimiter(_AT_ONCE)

        async def one(key: JobKey) -> None:
            async with places:
                try:
                    results.append(await self._job(key))
                except (BusError, Refused) as error:
                    errors.append(error)

        async with create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(one, key)
        if errors:
            raise errors[0]
        gone = [result for result in results if result is not None]
        return sum(gone, Erased()), len(results) - len(gone)

    async def _job(self, key: JobKey) -> Erased | None:
        """None: it has not ended yet."""
        try:
            entry = await self._bus.records.read(key)
        except RecordUnreadable:
            await self._bus.records.delete(key, None)
            return Erased(jobs=1)
        if entry is None:
            return Erased()
        cancelled = entry.recorded.job.status not in FINAL
        try:
            if cancelled:
                entry = await self._reach.intake.cancel(key)
            if entry.recorded.job.status not in FINAL:
                return None
            await self._bus.records.delete(key, entry.revision)
        except Conflict:
            return None
        except Refused as refused:
            if refused.code not in {"job_final", "not_found"}:
                raise
            return None  # somebody was faster: the next look goes by what is there then
        return Erased(jobs=1, cancelled=int(cancelled))

    async def _said(self, owner: str) -> Erased:
        """What was said about jobs that are gone: to followers, to webhooks, to the books, to runners."""
        bus = self._bus
        for pointer in await bus.queue.waiting(owner):
            await bus.queue.withdraw(pointer)
        feed = await bus.feed.erase(owner)
        letters = await bus.outbox.withdraw(owner)
        rows = await bus.delivered.keys(f"{owner}.>")
        for name in rows:
            await bus.delivered.delete(name)
        await bus.hooks.delete(owner)
        return Erased(feed=feed, deliveries=max(letters, len(rows)), usage_rows=await bus.usage.erase(owner))

    async def _drop(self, owner: str, name: str) -> tuple[int, tuple[str, ...]]:
        """Bytes of the file, and the hosts that may have it."""
        try:
            row = await self._bus.assets.get(name)
        except Unreadable:
            row = None
        deleted = await self._reach.assets.drop(owner, name.partition(".")[2])
        return row.value.bytes if row else 0, deleted.hosts_pending

    async def _judge(self, owner: str, found: Erased) -> None:
        """Whether that was all."""
        row = await self._bus.erasures.get(owner)
        now = self._clock()
        if row is None or not found.nothing:
            await self._change(owner, state=ErasureState.RUNNING, quiet_since=None)
        elif row.value.quiet_since is None:
            await self._change(owner, state=ErasureState.SETTLING, quiet_since=now)
        elif now - row.value.quiet_since >= self._settle:
            await self._reach.assets.sweep()  # the bytes are out of the trash, too, when it is called done
            await self._change(owner, state=ErasureState.DONE, finished_at=now)
            self._reach.quotas.closed -= {owner}

    async def _tell(
        self, owner: str, gone: Erased, *, waiting_for: int | None = None, hosts: set[str] | None = None
    ) -> Erased:
        """Add to the report; `gone` again."""
        row = await self._bus.erasures.get(owner)
        if row is None:
            return gone
        named = tuple(sorted({*row.value.hosts_pending, *(hosts or ())}))
        waits = row.value.waiting_for if waiting_for is None else waiting_for
        if not gone.nothing or (named, waits) != (row.value.hosts_pending, row.value.waiting_for):
            await self._change(owner, gone, hosts_pending=named, waiting_for=waits)
        return gone

    async def _change(self, owner: str, gone: Erased = Erased(), **fields: object) -> None:  # noqa: B008 - frozen
        for _ in range(_TRIES):
            row = await self._bus.erasures.get(owner)
            if row is None:
                return
            told = structs.replace(row.value, erased=row.value.erased + gone, **fields)
            if told == row.value:
                return
            try:
                await self._bus.erasures.update(owner, told, row.revision)
            except Conflict:
                continue
            return
        raise Conflict(f"the deletion of {owner} changed {_TRIES} times meanwhile")
