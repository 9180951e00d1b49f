"""What all edges of one installation hold to: the first one's word, written once."""

from bus.port import Conflict, Table
from edge.services.clock import Clock
from edge.store.port import StoreError
from schemas.access import Agreed

_STORE = "store"  # its row


async def settle(table: Table[Agreed], name: str, proposal: str, clock: Clock) -> str:
    """What was agreed under `name`; `proposal` from now on where nothing was. Raises BusError."""
    row = await table.get(name)
    if row is None:
        try:
            await table.create(name, Agreed(proposal, clock()))
        except Conflict:  # another edge was first
            row = await table.get(name)
    return proposal if row is None else row.value.value


class AnotherStore(StoreError):
    """This edge's asset store is not the installation's: it would answer 404 for what other edges took."""


async def agree_on_store(table: Table[Agreed], fingerprint: str, clock: Clock, *, replace: bool) -> None:
    """Hold to one asset store. `replace`: from now on it is this one. Raises AnotherStore, BusError."""
    if replace:
        await table.put(_STORE, Agreed(fingerprint, clock()))
    agreed = await settle(table, _STORE, fingerprint, clock)
    if agreed != fingerprint:
        raise AnotherStore(
            "this edge's asset store is another than the one that this installation's edges share: give it the same "
            "[store] url, or, if the store was replaced on purpose, start once with [store] replace = true"
        )
