"""`python -m bench.open_connections PORT KEY`: hold idle, slow and streaming connections to an edge until killed.

Prints one line of JSON once all are open. If the edge closes a connection, it is opened again, as an attacker would do.
"""

import asyncio
import contextlib
import json
import sys
from collections import Counter

IDLE, SLOW, STREAMS = 2000, 200, 1000
RECONNECT_DELAY_S = 1.0
SLOW_SEND_INTERVAL_S = 0.5


class OpenConnections:
    """Many open connections to one edge. `answers` counts the status lines of the streams."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._stream = f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        self._opened = asyncio.Semaphore(0)
        self.answers: Counter[str] = Counter()

    async def idle(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._opened.release()
        await reader.read()
        writer.close()

    async def slow(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._opened.release()
        writer.write(b"GET /livez HTTP/1.1\r\nX: ")
        closed = asyncio.ensure_future(reader.read())
        while not closed.done():
            writer.write(b"a")
            await asyncio.wait({closed}, timeout=SLOW_SEND_INTERVAL_S)
        writer.close()
        await closed

    async def stream(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._stream)
        line = await reader.readline()
        self.answers[line.decode().strip()] += 1
        self._opened.release()
        await reader.read()
        writer.close()

    async def _keep_open(self, kind: str) -> None:
        while True:
            with contextlib.suppress(OSError):
                await getattr(self, kind)()
            await asyncio.sleep(RECONNECT_DELAY_S if kind != "stream" else 10 * RECONNECT_DELAY_S)

    async def hold(self) -> None:
        """Open all connections, print `answers`, and keep the connections open."""
        async with asyncio.TaskGroup() as tasks:
            for kind, count in (("idle", IDLE), ("slow", SLOW), ("stream", STREAMS)):
                for number in range(count):
                    tasks.create_task(self._keep_open(kind))
                    if number % 50 == 49:
                        await asyncio.sleep(0.05)
            for _ in range(IDLE + SLOW + STREAMS):
                await self._opened.acquire()
            print(json.dumps(self.answers), flush=True)


if __name__ == "__main__":
    asyncio.run(OpenConnections(int(sys.argv[1]), sys.argv[2]).hold())
