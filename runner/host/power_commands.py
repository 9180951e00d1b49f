"""Power orders of the edge for this host: to claim nothing new, or to power its own machine off.

The order is the host's power record, read with every heartbeat. Because it is read again and again, it cannot be lost,
and a new runner process reads it before its first claim.
"""

import os
from collections.abc import Callable, Sequence

import anyio
from structlog.typing import FilteringBoundLogger

from bus.interface import BusError
from runner.claiming.schedulability import HostState
from runner.context import RunnerContext
from schemas.environment import build_child_environment
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
