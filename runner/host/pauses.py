"""Pauses that an operator set: of endpoints, and the maintenance of this host.

They are read with every heartbeat, as power orders are.
"""

import anyio

from bus.interface import BusError
from runner.claiming.schedulability import HostState
from runner.context import HostContext, RunnerContext
from schemas.pause import endpoint_pause_key, maintenance_key


class PauseWatch:
    """Applies the pauses of endpoints, and the maintenance of this host, to what is claimed."""

    def __init__(self, context: RunnerContext, host: HostContext, state: HostState) -> None:
        self._context = context
        self._host = host
        self._state = state

    async def run(self) -> None:
        """Read the pauses again at the interval of the heartbeat, forever."""
        while True:
            await self.apply()
            await anyio.sleep(self._context.intervals.presence_s)

    async def apply(self) -> None:
        """Read and apply the pauses. While the broker is away, the last ones hold."""
        try:
            keys = await self._context.bus.pauses.keys()
        except BusError as error:
            self._context.log_unavailable("pauses", error)
            return
        endpoints = frozenset(name for name in self._host.endpoints if endpoint_pause_key(name) in keys)
        is_in_maintenance = maintenance_key(self._context.host) in keys
        if self._state.set_pauses(endpoints, is_in_maintenance=is_in_maintenance):
            self._context.log.info("pauses_changed", endpoints=sorted(endpoints), maintenance=is_in_maintenance)
