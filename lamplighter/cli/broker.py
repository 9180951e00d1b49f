"""The broker of an `up`, kept going: started again when it ends, and when its full disk has room again.

nats-server 2.15 that could not write stores nothing more, also once there is room: it has to be started anew. It is not
while the disk is full: a start writes, and what it cannot write it may take for lost.
"""

import shutil
from pathlib import Path

import anyio
import structlog

from bus.monitor import Monitors, monitor, outvoted
from bus.port import Unreachable
from bus.server import Server
from lamplighter.cli.supervisor import Ledger

LOOK_S = 2.0
ROOM_BYTES = 16 * 1000**2

log = structlog.get_logger()


class KeptBroker:
    """`server`, which runs already, with its data in `folder`."""

    def __init__(self, server: Server, ledger: Ledger, folder: Path) -> None:
        self._server = server
        self._ledger = ledger
        self._folder = folder

    async def run(self) -> None:
        """Keep it going, without end."""
        async with monitor(self._server.monitor) as client:
            monitors = Monitors((client,), anyio.current_time)
            while True:
                if self._server.pid is not None:
                    self._ledger.note("broker", self._server.pid)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._end_when_halted, monitors)
                    await self._server.ended()
                    tasks.cancel_scope.cancel()
                log.warning("the broker ended, starting it again")
                await self._start()

    async def _start(self) -> None:
        while True:
            try:
                await self._room()
                await self._server.start()
            except Unreachable as error:
                log.warning("the broker does not start, trying again", error=str(error))
                await anyio.sleep(LOOK_S)
            else:
                return

    async def _end_when_halted(self, monitors: Monitors) -> None:
        """End it once it stores nothing more and could again."""
        while not await _halted(monitors):  # noqa: ASYNC110 - another process's state
            await anyio.sleep(LOOK_S)
        await self._room()
        log.warning("the broker could not write and has room now, restarting it")
        await self._server.stop()

    async def _room(self) -> None:
        """Return when its disk has some."""
        if not self._has_room():
            log.error("the broker's disk is full, it stores nothing: make room there", folder=str(self._folder))
        while not self._has_room():  # noqa: ASYNC110 - others make room, and raise no event here
            await anyio.sleep(LOOK_S)

    def _has_room(self) -> bool:
        return shutil.disk_usage(self._folder).free >= ROOM_BYTES


async def _halted(monitors: Monitors) -> bool:
    try:
        return outvoted(await monitors.ask())
    except Unreachable:  # it is ending; whoever waits for that starts it again
        return False
