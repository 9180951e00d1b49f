"""Capacity as permits: a slot is the right to run one container, and comes back in a known condition or not at all."""

import shutil
from pathlib import Path

import anyio

from schemas.job import JobKey

MIB = 1 << 20


class Permit:
    """One slot, held. Give it back idle, once, or poisoned."""

    def __init__(self, slots: "Slots") -> None:
        self._slots = slots
        self.held = True

    def idle(self) -> None:
        """The container is gone; the slot may be used again."""
        self._release()

    def poisoned(self, key: JobKey) -> None:
        """What became of the container of `key` is not known: nobody may use the slot until it is.

        A slot that was given back before, when the container had exited, is taken again.
        """
        if not self.held:
            self._slots.adopt()
            self.held = True
        self._release(key)

    def _release(self, key: JobKey | None = None) -> None:
        if not self.held:
            raise RuntimeError("this permit was given back before")
        self.held = False
        self._slots.returned(key)


class Slots:
    """`count` slots. Jobs that are adopted come on top of that if need be: they run already."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._busy = 0
        self._poisoned: set[JobKey] = set()
        self._freed = anyio.Event()

    @property
    def free(self) -> int:
        """Slots that may be used now; below 0 while adopted jobs run over the count."""
        return self.count - self._busy - len(self._poisoned)

    @property
    def poisoned(self) -> frozenset[JobKey]:
        """The jobs whose containers hold slots that nobody may use."""
        return frozenset(self._poisoned)

    def take(self) -> Permit | None:
        """A slot for a new job, or None when all are in use."""
        return self.adopt() if self.free > 0 else None

    def adopt(self, key: JobKey | None = None) -> Permit:
        """A slot for a container that is there already; the one that `key` poisoned, if it did."""
        self._poisoned.discard(key) if key else None
        self._busy += 1
        return Permit(self)

    def heal(self, key: JobKey) -> None:
        """The container of `key` is known to be gone."""
        self._poisoned.discard(key)
        self._wake()

    def returned(self, poisoned_by: JobKey | None) -> None:
        """A permit came back; only permits call this."""
        self._busy -= 1
        if poisoned_by is not None:
            self._poisoned.add(poisoned_by)
        self._wake()

    async def until_free(self) -> None:
        """Wait until a slot may be used."""
        while self.free <= 0:
            await self._freed.wait()

    def _wake(self) -> None:
        self._freed.set()
        self._freed = anyio.Event()


def memory_free_mb() -> int:
    """MiB of the host's memory that could be used without swapping (MemAvailable of proc(5))."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) // 1024


def disk_free_mb(folder: Path) -> int:
    """MiB left on the disk of `folder`."""
    return shutil.disk_usage(folder).free // MIB
