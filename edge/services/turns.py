"""One at a time at a thing that a client sends; whoever has fallen silent gives way to the client's next try.

A connection that is cut without a word (a phone in a tunnel) stays open here for minutes. Its client is back within
seconds, and must not find its own upload locked by its own ghost.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import CancelScope

from schemas.errors import Refused

WAIT_S = 2.0  # for whoever is at it, before it is looked at again
SILENT_S = 1.0  # without a byte at that moment: cut


class Turn:
    """Somebody's time at it."""

    def __init__(self) -> None:
        self._heard_at = anyio.current_time()
        self._reading: CancelScope | None = None
        self._wanted = False
        self.over = anyio.Event()

    @property
    def silent(self) -> bool:
        """Whether nothing has come for SILENT_S, although something is waited for."""
        return self._reading is not None and anyio.current_time() - self._heard_at >= SILENT_S

    def give_way(self) -> None:
        """Stop waiting for more; what has come is kept."""
        self._wanted = True
        if self._reading is not None:
            self._reading.cancel()

    async def heard(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`chunks`, until they end or this turn has to give way."""
        while not self._wanted:
            chunk: bytes | None = None
            with CancelScope() as self._reading:
                chunk = await anext(chunks, None)
            self._reading = None
            self._heard_at = anyio.current_time()
            if chunk is None:
                return
            yield chunk


class Turns:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._now: Turn | None = None

    @property
    def taken(self) -> bool:
        """Whether somebody is at it."""
        return self._now is not None

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Turn]:
        """My turn, for as long as the block runs. Raises Refused `upload_locked` while somebody is at it."""
        await self.free()
        turn = self._now = Turn()
        try:
            yield turn
        finally:
            self._now = None
            turn.over.set()

    async def free(self) -> None:
        """Wait until it is nobody's turn. Raises Refused `upload_locked` where somebody goes on."""
        turn = self._now
        if turn is None:
            return
        with anyio.move_on_after(WAIT_S):
            await turn.over.wait()
        if turn.silent:
            await self.end()
        if self._now is not None:
            raise Refused(
                "upload_locked", "another request is sending to this upload: wait for it to end", retry_after_s=1
            )

    async def end(self) -> None:
        """Let whoever is at it stop, silent or not."""
        turn = self._now
        if turn is not None:
            turn.give_way()
            with anyio.move_on_after(WAIT_S):
                await turn.over.wait()
