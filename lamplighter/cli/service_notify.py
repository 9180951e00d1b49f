"""Reports to the service manager that started this process (sd_notify(3)): ready, alive, stopping.

systemd names a socket in NOTIFY_SOCKET. Without that variable, as in a terminal, nothing is sent.
"""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Self

import anyio

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLES = ("WATCHDOG_USEC", "WATCHDOG_PID")
PINGS_PER_TIMEOUT = 3  # sd_watchdog_enabled(3) asks for two; one may come late


async def _always_alive() -> bool:
    return True


class ServiceNotifier:
    """The connection to the service manager. `watchdog_s`: it ends a process that did not ping for so long."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Return the notifier that `environ` describes. Removes its variables: a child must not report for us."""
        address = environ.pop(SOCKET_VARIABLE, None)
        usec, pid = (environ.pop(name, "") for name in WATCHDOG_VARIABLES)
        is_for_us = usec.isdecimal() and pid in {"", str(os.getpid())}
        return cls(address, int(usec) / 1e6 if is_for_us else None)

    def ready(self) -> None:
        """Report that the start is complete."""
        self._send("READY=1")

    def stopping(self, timeout_s: float) -> None:
        """Report that the process ends, within `timeout_s` from now, whatever TimeoutStopSec says."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}")

    @asynccontextmanager
    async def pinging(self, is_alive: Callable[[], Awaitable[bool]] = _always_alive) -> AsyncIterator[None]:
        """Ping the watchdog from this event loop during the block, each time that `is_alive` returns True."""
        async with anyio.create_task_group() as tasks:
            if self._watchdog_s is not None:
                tasks.start_soon(self._ping, self._watchdog_s / PINGS_PER_TIMEOUT, is_alive)
            yield
            tasks.cancel_scope.cancel()

    async def _ping(self, interval_s: float, is_alive: Callable[[], Awaitable[bool]]) -> None:
        while True:
            if await is_alive():
                self._send("WATCHDOG=1")
            await anyio.sleep(interval_s)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # A name that starts with @ is in the abstract namespace (unix(7)).
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not stop the event loop
            sender.sendto(state.encode(), address)
