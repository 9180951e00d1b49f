"""Switching the own machine off: the owner's program, in a session of its own so that it outlives us."""

import os
from collections.abc import Sequence

import anyio
from structlog.typing import FilteringBoundLogger

from schemas.environ import handed_on


async def power_off(program: Sequence[str], log: FilteringBoundLogger) -> None:
    """Run it. One that does not start or fails is told loudly: the machine stays on, and the runner with it."""
    if why := await _failure(program):
        log.error("not powered off: correct `poweroff` in the settings", program=program[0], why=why)


async def _failure(program: Sequence[str]) -> str:
    """Why it did not do as told, or ""."""
    try:
        done = await anyio.run_process(list(program), check=False, env=handed_on(os.environ), start_new_session=True)
    except OSError as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip()[-200:]
    return f"exit code {done.returncode}: {said}" if done.returncode else ""
