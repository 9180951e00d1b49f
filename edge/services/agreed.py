"""What all edges of one installation hold to: the first one's word, written once."""

from bus.port import Conflict, Table
from edge.services.clock import Clock
from schemas.access import Agreed


async def settle(table: Table[Agreed], name: str, proposal: str, clock: Clock) -> str:
    """What was agreed under `name`; `proposal` from now on where nothing was. Raises BusError."""
    row = await table.get(name)
    if row is None:
        try:
            await table.create(name, Agreed(proposal, clock()))
        except Conflict:  # another edge was first
            row = await table.get(name)
    return proposal if row is None else row.value.value
