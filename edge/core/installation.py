"""Rows that the edges of one installation share: constants, and leases for work that one edge does at a time.

The first edge writes a constant, and the others read it. A lease expires when its holder stops renewing it.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import structlog
from anyio import create_task_group, move_on_after, sleep

from bus.compare_and_set import update_row
from bus.interface import BusError, Table
from edge.core.clock import Clock, Entropy
from edge.store.port import StoreError
from schemas.installation import LEASE_TTL_S, InstallationConstant, Lease

_STORE_KEY = "store"
_SIGNING_KEY = "signing"
_BACKUP_KEY = "last-backup"
_SECRET_BYTES = 32

_log = structlog.get_logger()


async def get_or_create_value(table: Table[InstallationConstant], name: str, proposal: str, clock: Clock) -> str:
    """Return the value stored under `name`; store `proposal` first if nothing is stored. Raises BusError."""

    def decide(stored: InstallationConstant | None) -> InstallationConstant:
        return InstallationConstant(proposal, clock()) if stored is None else stored

    row = (await update_row(table, name, decide)).row
    return proposal if row is None else row.value.value


async def get_or_create_secret(table: Table[InstallationConstant], entropy: Entropy, clock: Clock) -> bytes:
    """Return the secret with which all edges sign URLs and tokens; the first edge creates it. Raises BusError."""
    return bytes.fromhex(await get_or_create_value(table, _SIGNING_KEY, entropy(_SECRET_BYTES).hex(), clock))


async def record_backup(table: Table[InstallationConstant], at: datetime) -> None:
    """Record when the last successful backup was made. Raises BusError."""
    await table.put(_BACKUP_KEY, InstallationConstant("", at))


async def read_last_backup(table: Table[InstallationConstant]) -> datetime | None:
    """Return when the last successful backup was made; None before the first. Raises BusError."""
    row = await table.get(_BACKUP_KEY)
    return None if row is None else row.value.at


class StoreMismatch(StoreError):
    """This edge uses another asset store than the installation: it would answer 404 for assets of other edges."""


async def check_store_fingerprint(
    table: Table[InstallationConstant], fingerprint: str, clock: Clock, *, replace: bool
) -> None:
    """Check that this edge uses the installation's asset store. Raises StoreMismatch, BusError.

    `replace`: make the store with this fingerprint the installation's store from now on.
    """
    if replace:
        await table.put(_STORE_KEY, InstallationConstant(fingerprint, clock()))
    installed = await get_or_create_value(table, _STORE_KEY, fingerprint, clock)
    if installed != fingerprint:
        raise StoreMismatch(
            "this edge uses another asset store than the other edges of this installation: give it the same "
            "[store] url, or, if the store was replaced on purpose, start once with [store] replace = true"
        )


_RENEW_INTERVAL_S = LEASE_TTL_S / 4
_RELEASE_TIMEOUT_S = 2.0


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
