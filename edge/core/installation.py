"""What all edges of one installation hold to: the first one's word, written once."""

from bus.interface import RevisionConflict, Table
from edge.core.clock import Clock
from edge.store.port import StoreError
from schemas.installation import InstallationConstant

_STORE_KEY = "store"  # its row


async def get_or_create_value(table: Table[InstallationConstant], name: str, proposal: str, clock: Clock) -> str:
    """What was agreed under `name`; `proposal` from now on where nothing was. Raises BusError."""
    row = await table.get(name)
    if row is None:
        try:
            await table.create(name, InstallationConstant(proposal, clock()))
        except RevisionConflict:  # another edge was first
            row = await table.get(name)
    return proposal if row is None else row.value.value


class StoreMismatch(StoreError):
    """This edge's asset store is not the installation's: it would answer 404 for what other edges took."""


async def check_store_fingerprint(
    table: Table[InstallationConstant], fingerprint: str, clock: Clock, *, replace: bool
) -> None:
    """Hold to one asset store. `replace`: from now on it is this one. Raises AnotherStore, BusError."""
    if replace:
        await table.put(_STORE_KEY, InstallationConstant(fingerprint, clock()))
    agreed = await get_or_create_value(table, _STORE_KEY, fingerprint, clock)
    if agreed != fingerprint:
        raise StoreMismatch(
            "this edge's asset store is another than the one that this installation's edges share: give it the same "
            "[store] url, or, if the store was replaced on purpose, start once with [store] replace = true"
        )
