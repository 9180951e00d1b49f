"""What the edge's power law orders of this host: to take nothing new, or to switch its own machine off.

The order is the host's row in POWER, read with every heartbeat: read again and again it cannot be lost, and a new life
reads it before its first claim.
"""

from collections.abc import Callable, Sequence

import anyio

from bus.port import BusError
from runner.life import Life
from runner.poweroff import power_off
from runner.readiness import Readiness
from schemas.power import PowerRecord, PowerState

NOTHING_NEW = frozenset({PowerState.DRAINING, PowerState.STOPPING})


class Orders:
    """Follows the row. `hurry` is called when what may be taken changes, so that the edge hears of it at once."""

    def __init__(self, life: Life, ready: Readiness, hurry: Callable[[], None]) -> None:
        self._life = life
        self._ready = ready
        self._hurry = hurry

    async def run(self, empty: Callable[[], bool], poweroff: Sequence[str]) -> None:
        """Without end. The program `poweroff` is started once the order is to go dark and nothing is left here."""
        while True:
            order = await self.obey()
            if order is not None and poweroff and _go_dark(order) and empty():
                self._life.log.warning("powering_off", program=poweroff[0])
                await power_off(poweroff, self._life.log)
            await anyio.sleep(self._life.pace.presence_s)

    async def obey(self) -> PowerRecord | None:
        """Read the order and keep to it; None where the host is not declared, or the broker is away."""
        try:
            row = await self._life.bus.power.get(self._life.host)
        except BusError as error:
            self._life.away("orders", error)
            return None
        paused = row is not None and row.value.state in NOTHING_NEW
        if paused != self._ready.paused:
            self._ready.paused = paused
            self._life.log.info("ordered", paused=paused)
            self._hurry()
        return None if row is None else row.value


def _go_dark(order: PowerRecord) -> bool:
    return order.state is PowerState.STOPPING and order.own_poweroff
