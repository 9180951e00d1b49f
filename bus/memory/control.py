"""Nudges in memory: lost when nobody listens, as core subjects are."""

from collections import deque
from collections.abc import AsyncIterator

from bus.memory.link import MemoryLink
from schemas.job import JobKey


class MemoryControl:
    """`links` are all connections of the broker."""

    def __init__(self, link: MemoryLink, links: list[MemoryLink]) -> None:
        self._link = link
        self._links = links

    async def nudge(self, host: str, key: JobKey) -> None:
        """Tell every connection that listens for `host`."""
        await self._link.reach()
        for link in self._links:
            if link.connected and host in link.nudged:
                link.nudged[host].append(key)
                link.tell()

    async def nudges(self, host: str) -> AsyncIterator[JobKey]:
        """What `host` is told from now on."""
        heard = self._link.nudged.setdefault(host, deque())
        while True:
            while heard:
                yield heard.popleft()
            await self._link.changed()
