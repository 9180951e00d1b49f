"""Accepting connections: each gets its place before a byte is read or a TLS handshake begins."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from edge.server.certificate import ServedCertificate
from edge.server.connections import ConnectionSlot, ServerContext
from edge.server.protocol import BoundedHttp, encode_problem_response
from schemas.problems import ProblemError

ACCEPT_BATCH_LIMIT = 16  # connections accepted in one turn of the loop: some 2 ms, in which others wait
ACCEPT_RETRY_INTERVAL_S = 0.5  # without descriptors the kernel reports a waiting connection over and over

ProtocolFactory = Callable[[ConnectionSlot], BoundedHttp]


class ConnectionListener:
    """One listening socket. uvicorn ends it as it ends an asyncio.Server: `close`, then `wait_closed`."""

    def __init__(
        self, listening: socket.socket, make: ProtocolFactory, shared: ServerContext, tls: ServedCertificate | None
    ) -> None:
        self._socket, self._protocol_factory, self._tls = listening, make, tls
        self._handshake_s = shared.limits.handshake_s
        self._connections, self._client_events = shared.connections, shared.client_events
        self._handshakes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        listening.setblocking(False)
        self._resume()

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH_LIMIT):
            try:
                connected, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._client_events.log("connection_not_accepted", "", error=str(error))
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(ACCEPT_RETRY_INTERVAL_S, self._resume)
                return
            self._admit(connected, str(peer[0]))

    def _admit(self, connected: socket.socket, address: str) -> None:
        connected.setblocking(False)
        try:
            slot = self._connections.acquire_slot(address)
        except ProblemError as refused:
            self._client_events.log("connection_refused", address, code=refused.code, why=refused.detail)
            self._reject(connected, refused)
            return
        task = self._loop.create_task(self._open(connected, slot))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _reject(self, connected: socket.socket, refused: ProblemError) -> None:
        """Say why and close. Nothing is waited for: the answer fits into the socket's buffer."""
        with connected, contextlib.suppress(OSError):
            if self._tls is None:
                connected.send(encode_problem_response(refused))
                connected.shutdown(socket.SHUT_WR)
                connected.recv(65536)  # closing with unread bytes would reset the connection before the answer is read

    async def _open(self, connected: socket.socket, slot: ConnectionSlot) -> None:
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: self._protocol_factory(slot),
                connected,
                ssl=self._tls.context if self._tls is not None else None,
                ssl_handshake_timeout=self._handshake_s if self._tls is not None else None,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            if self._tls is not None:
                self._client_events.log("tls_handshake_failed", slot.address, error=str(error) or type(error).__name__)
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
            self._loop.remove_reader(self._socket.fileno())
            for task in self._handshakes:
                task.cancel()

    async def wait_closed(self) -> None:
        """Return once every handshake has ended."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)
