"""Accepting connections: each gets its place before a byte is read or a TLS handshake begins."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from edge.server.certificate import ServedCertificate
from edge.server.connections import Shared, Slot
from edge.server.protocol import BoundedHttp, response
from schemas.errors import Refused

AT_ONCE = 16  # connections accepted in one turn of the loop: some 2 ms, in which others wait
EXHAUSTED_S = 0.5  # without descriptors the kernel reports a waiting connection over and over

Make = Callable[[Slot], BoundedHttp]


class Listener:
    """One listening socket. uvicorn ends it as it ends an asyncio.Server: `close`, then `wait_closed`."""

    def __init__(self, listening: socket.socket, make: Make, shared: Shared, tls: ServedCertificate | None) -> None:
        self._listening, self._make, self._tls = listening, make, tls
        self._handshake_s = shared.bounds.handshake_s
        self._connections, self._strangers = shared.connections, shared.strangers
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        listening.setblocking(False)
        self._resume()

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connected, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._strangers.note("connection_not_accepted", "", error=str(error))
                self._loop.remove_reader(self._listening.fileno())
                self._loop.call_later(EXHAUSTED_S, self._resume)
                return
            self._place(connected, str(peer[0]))

    def _place(self, connected: socket.socket, address: str) -> None:
        connected.setblocking(False)
        try:
            slot = self._connections.take(address)
        except Refused as refused:
            self._strangers.note("connection_refused", address, code=refused.code, why=refused.detail)
            self._turn_away(connected, refused)
            return
        task = self._loop.create_task(self._open(connected, slot))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _turn_away(self, connected: socket.socket, refused: Refused) -> None:
        """Say why and close. Nothing is waited for: the answer fits into the socket's buffer."""
        with connected, contextlib.suppress(OSError):
            if self._tls is None:
                connected.send(response(refused))
                connected.shutdown(socket.SHUT_WR)
                connected.recv(65536)  # closing with unread bytes would reset the connection before the answer is read

    async def _open(self, connected: socket.socket, slot: Slot) -> None:
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: self._make(slot),
                connected,
                ssl=self._tls.context if self._tls is not None else None,
                ssl_handshake_timeout=self._handshake_s if self._tls is not None else None,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            if self._tls is not None:
                self._strangers.note("tls_handshake_failed", slot.address, error=str(error) or type(error).__name__)
            slot.release()
            connected.close()
        except BaseException:
            slot.release()
            connected.close()
            raise

    def close(self) -> None:
        """Accept nothing any more, and end the handshakes that are under way."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listening.fileno())
            for task in self._opening:
                task.cancel()

    async def wait_closed(self) -> None:
        """Return once every handshake has ended."""
        await asyncio.gather(*self._opening, return_exceptions=True)
