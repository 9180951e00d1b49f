"""What the edge's power law orders of this host: to take nothing new, or to switch its own machine off.

The order is the host's row in POWER, read with every heartbeat: read again and again it cannot be lost, and a new life
reads it before its first claim.
"""

import os
from collections.abc import Callable, Sequence

import anyio
from structlog.typing import FilteringBoundLogger

from bus.interface import BusError
from runner.claiming.schedulability import Schedulability
from runner.context import RunnerContext
from schemas.environment import build_child_environment
from schemas.power import PowerRecord, PowerState

PAUSED_STATES = frozenset({PowerState.DRAINING, PowerState.STOPPING})


class PowerCommands:
    """Follows the row. `hurry` is called when what may be taken changes, so that the edge hears of it at once."""

    def __init__(self, life: RunnerContext, ready: Schedulability, hurry: Callable[[], None]) -> None:
        self._context = life
        self._schedulability = ready
        self._publish_now = hurry

    async def run(self, empty: Callable[[], bool], poweroff: Sequence[str]) -> None:
        """Without end. The program `poweroff` is started once the order is to go dark and nothing is left here."""
        while True:
            order = await self.apply()
            if order is not None and poweroff and _must_power_off(order) and empty():
                self._context.log.warning("powering_off", program=poweroff[0])
                await power_off(poweroff, self._context.log)
            await anyio.sleep(self._context.intervals.presence_s)

    async def apply(self) -> PowerRecord | None:
        """Read the order and keep to it; None where the host is not declared, or the broker is away."""
        try:
            row = await self._context.bus.power_records.get(self._context.host)
        except BusError as error:
            self._context.log_unavailable("orders", error)
            return None
        paused = row is not None and row.value.state in PAUSED_STATES
        if paused != self._schedulability.is_paused:
            self._schedulability.is_paused = paused
            self._context.log.info("ordered", paused=paused)
            self._publish_now()
        return None if row is None else row.value


def _must_power_off(order: PowerRecord) -> bool:
    return order.state is PowerState.STOPPING and order.runner_powers_off


# MERGED runner/poweroff.py: Switching the own machine off: the owner's program, in a session of its own so that it
# outlives us.


async def power_off(program: Sequence[str], log: FilteringBoundLogger) -> None:
    """Run it. One that does not start or fails is told loudly: the machine stays on, and the runner with it."""
    if why := await _run_program(program):
        log.error("not powered off: correct `poweroff` in the settings", program=program[0], why=why)


async def _run_program(program: Sequence[str]) -> str:
    """Why it did not do as told, or ""."""
    try:
        done = await anyio.run_process(
            list(program), check=False, env=build_child_environment(os.environ), start_new_session=True
        )
    except OSError as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip()[-200:]
    return f"exit code {done.returncode}: {said}" if done.returncode else ""
