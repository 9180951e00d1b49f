"""Constants that all edges of one installation share: the first edge writes them, the others read them."""

from datetime import datetime

from bus.compare_and_set import update_row
from bus.interface import Table
from edge.core.clock import Clock, Entropy
from edge.store.port import StoreError
from schemas.installation import InstallationConstant

_STORE_KEY = "store"
_SIGNING_KEY = "signing"
_BACKUP_KEY = "last-backup"
_SECRET_BYTES = 32


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
