"""Leases: locks between the edges of an installation. A lease expires when its holder stops renewing it."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from anyio import create_task_group, move_on_after, sleep

from bus.compare_and_set import update_row
from bus.interface import BusError, Table
from edge.core.clock import Clock
from schemas.installation import LEASE_TTL_S, Lease

_RENEW_INTERVAL_S = LEASE_TTL_S / 4
_RELEASE_TIMEOUT_S = 2.0

_log = structlog.get_logger()


class Leases:
    """The leases of one edge process. `holder` identifies the process, not the edge: it is new at every start."""

    def __init__(self, table: Table[Lease], holder: str, clock: Clock) -> None:
        self._table = table
        self._holder = holder
        self._clock = clock

    @asynccontextmanager
    async def acquire(self, scope: str, name: str) -> AsyncIterator[bool]:
        """Try to acquire the lease of `name` in `scope` (dotted tokens) and renew it while the block runs.

        Yields whether it was acquired. Raises BusError.
        """
        key = f"{scope}.{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        lease = self._new_lease()
        if not (await update_row(self._table, key, lambda held: lease if held is None else None)).is_written:
            yield False
            return
        raised: Exception | None = None
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._renew, key)
                try:
                    yield True
                except Exception as error:  # raised again below: the task group would wrap it in an ExceptionGroup
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
                _log.warning("lease_renewal_failed", key=key, error=str(error))

    async def _release(self, key: str) -> None:
        try:
            await self._table.delete(key)
        except BusError as error:  # it expires by itself
            _log.warning("lease_release_failed", key=key, error=str(error))

    def _new_lease(self) -> Lease:
        return Lease(self._holder, self._clock())
