"""A unix socket in front of a daemon's, which can be shut and opened: to its clients, the daemon restarts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

# docker-py leaves its socket open when a daemon refuses it: the fixture `swept` collects it.
LEAKY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class SocketGate:
    """Listens at `path` and forwards to `target`."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self.url = f"unix://{path}"
        self._target = target
        self._aside = path.with_suffix(".shut")
        self._passing: set[asyncio.Task[None]] = set()
        self._shut = True

    async def serve(self) -> asyncio.Server:
        """Start with the gate shut."""
        return await asyncio.start_unix_server(self._pass, self._aside)

    def open(self) -> None:
        """Open the gate. The socket is moved, not recreated: closing a listener would lose the connections it had
        accepted.
        """
        self._shut = False
        self._aside.rename(self.path)

    async def shut(self) -> None:
        """Refuse new connections and drop the open ones."""
        self._shut = True
        self.path.rename(self._aside)
        passing = tuple(self._passing)
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut:  # accepted a moment before
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            await self._join(reader, writer)
        except* (asyncio.CancelledError, OSError):
            pass  # one side went away, or the gate was shut
        finally:
            writer.close()
            self._passing.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, onward = await asyncio.open_unix_connection(self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, onward))
                group.create_task(_copy(behind, writer))
        finally:
            onward.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


@asynccontextmanager
async def open_gate(folder: Path, target_url: str) -> AsyncIterator[SocketGate]:
    """Yield an open gate to the daemon at `target_url`."""
    made = SocketGate(folder / "gate.sock", target_url.removeprefix("unix://"))
    async with await made.serve():
        made.open()
        try:
            yield made
        finally:
            if made.path.exists():
                await made.shut()
