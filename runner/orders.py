"""What the edge's power law orders of this host: to take nothing new, or to switch its own machine off.

The order is the host's row in POWER, read with every heartbeat: read again and again it cannot be lost, and a new life
reads it before its first claim.
"""

from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio import Event
from anyio.abc import Process

from bus.port import BusError
from runner.life import Life
from schemas.power import PowerRecord, PowerState

NOTHING_NEW = frozenset({PowerState.DRAINING, PowerState.STOPPING})


class Orders:
    """Follows the row. `draining` says whether nothing new may be taken; `changed` is called when that turns."""

    def __init__(self, life: Life, changed: Callable[[], None]) -> None:
        self._life = life
        self._changed = changed
        self._allowed = Event()
        self._allowed.set()
        self.draining = False

    async def run(self, empty: Callable[[], bool], power_off: Callable[[], Awaitable[None]]) -> None:
        """Without end. `power_off` is called once the order is to go dark and `empty` says that nothing is left."""
        while True:
            row = await self.read()
            if row is not None and row.state is PowerState.STOPPING and row.own_poweroff and empty():
                await power_off()
            await anyio.sleep(self._life.pace.presence_s)

    async def read(self) -> PowerRecord | None:
        """The order as it stands, obeyed; None where the host is not declared, or the broker is away."""
        try:
            row = await self._life.bus.power.get(self._life.host)
        except BusError as error:
            self._life.away("orders", error)
            return None
        self._obey(row is not None and row.value.state in NOTHING_NEW)
        return None if row is None else row.value

    async def allowed(self) -> None:
        """Wait until work may be taken."""
        await self._allowed.wait()

    def _obey(self, draining: bool) -> None:
        if draining == self.draining:
            return
        self.draining = draining
        self._life.log.info("ordered", draining=draining)
        if draining:
            self._allowed = Event()
        else:
            self._allowed.set()
        self._changed()


async def run_poweroff(life: Life, argv: Sequence[str]) -> None:
    """Start the owner's program that switches this machine off; it ends us with everything else."""
    life.log.warning("powering_off", program=argv[0])
    process: Process = await anyio.open_process(list(argv), start_new_session=True)
    await process.wait()
