"""Who does what two edges need not both do. A lease that its holder stops renewing runs out."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from anyio import create_task_group, move_on_after, sleep

from bus.interface import BusError, RevisionConflict, Table
from edge.core.clock import Clock
from schemas.installation import LEASE_TTL_S, Lease

_RENEW_INTERVAL_S = LEASE_TTL_S / 4
_RELEASE_TIMEOUT_S = 2.0

_log = structlog.get_logger()


class Leases:
    """`holder` names this life of this edge."""

    def __init__(self, table: Table[Lease], holder: str, clock: Clock) -> None:
        self._table = table
        self._holder = holder
        self._clock = clock

    @asynccontextmanager
    async def acquire(self, place: str, what: str) -> AsyncIterator[bool]:
        """Whether `what` is ours to do, for as long as the block runs; `place` is dotted tokens. Raises BusError."""
        key = f"{place}.{hashlib.sha256(what.encode()).hexdigest()[:32]}"
        try:
            await self._table.create(key, self._new_lease())
        except RevisionConflict:
            yield False
            return
        raised: Exception | None = None
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._renew, key)
                try:
                    yield True
                except Exception as error:  # it leaves as itself, not in the group's ExceptionGroup
                    raised = error
                tasks.cancel_scope.cancel()
        finally:
            with move_on_after(_RELEASE_TIMEOUT_S, shield=True):
                await self._release(key)
        if raised is not None:
            raise raised

    async def _renew(self, key: str) -> None:
        while True:
            await sleep(_RENEW_INTERVAL_S)
            try:
                await self._table.put(key, self._new_lease())
            except BusError as error:
                _log.warning("lease_not_renewed", key=key, error=str(error))

    async def _release(self, key: str) -> None:
        try:
            await self._table.delete(key)
        except BusError as error:
            _log.warning("lease_left_to_run_out", key=key, error=str(error))

    def _new_lease(self) -> Lease:
        return Lease(self._holder, self._clock())
