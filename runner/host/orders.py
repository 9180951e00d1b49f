"""Orders for this host: the edge's power orders, and the pauses that an operator set.

A power order is to claim nothing new, or to power the machine off. It is in the host's power record. Pauses are those
of endpoints, and the maintenance of this host. Both are read with every heartbeat. Because they are read again and
again, they cannot be lost, and a new runner process reads the power order before its first claim.
"""

import os
from collections.abc import Callable, Sequence

import anyio
from structlog.typing import FilteringBoundLogger

from bus.interface import BusError
from runner.claiming.schedulability import HostState
from runner.context import HostContext, RunnerContext
from schemas.environment import build_child_environment
from schemas.installation import endpoint_pause_key, maintenance_key
from schemas.power import PowerRecord, PowerState

PAUSED_STATES = frozenset({PowerState.DRAINING, PowerState.STOPPING})


class PowerCommands:
    """Follows the power record of this host."""

    def __init__(self, context: RunnerContext, state: HostState) -> None:
        self._context = context
        self._state = state

    async def run(self, is_empty: Callable[[], bool], poweroff: Sequence[str]) -> None:
        """Run forever. Start the program `poweroff` once the order is to stop and nothing is left here."""
        while True:
            order = await self.apply()
            if order is not None and poweroff and _must_power_off(order) and is_empty():
                self._context.log.warning("power_off_started", program=poweroff[0])
                await power_off(poweroff, self._context.log)
            await anyio.sleep(self._context.intervals.presence_s)

    async def apply(self) -> PowerRecord | None:
        """Read and apply the order; return None if the host is not declared, or if the broker is away."""
        try:
            entry = await self._context.bus.power_records.get(self._context.host)
        except BusError as error:
            self._context.log_unavailable("orders", error)
            return None
        paused = entry is not None and entry.value.state in PAUSED_STATES
        if self._state.set_paused(paused):
            self._context.log.info("power_order_received", paused=paused)
        return None if entry is None else entry.value


def _must_power_off(order: PowerRecord) -> bool:
    return order.state is PowerState.STOPPING and order.runner_powers_off


async def power_off(program: Sequence[str], log: FilteringBoundLogger) -> None:
    """Run the owner's program that powers this machine off, in a session of its own so that it outlives us.

    A program that does not start or fails is logged as an error: the machine and the runner stay up.
    """
    if problem := await _run_program(program):
        log.error("power_off_failed", remedy="correct `poweroff` in the settings", program=program[0], error=problem)


async def _run_program(program: Sequence[str]) -> str:
    """Return what went wrong, or ""."""
    try:
        result = await anyio.run_process(
            list(program), check=False, env=build_child_environment(os.environ), start_new_session=True
        )
    except OSError as error:
        return str(error)
    stderr = result.stderr.decode(errors="replace").strip()[-200:]
    return f"exit code {result.returncode}: {stderr}" if result.returncode else ""


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
