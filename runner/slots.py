"""Capacity as permits: a slot is the right to run one container, and comes back in a known condition or not at all."""

import anyio

from schemas.ids import JobKey


class Permit:
    """One slot, held. Give it back idle, once, or poisoned."""

    def __init__(self, slots: "Slots") -> None:
        self._slots = slots
        self.is_held = True

    def release(self) -> None:
        """The container is gone; the slot may be used again."""
        self._release()

    def poison(self, key: JobKey) -> None:
        """What became of the container of `key` is not known: nobody may use the slot until it is.

        A slot that was given back before, when the container had exited, is taken again.
        """
        if not self.is_held:
            self._slots.take_for_recovered()
            self.is_held = True
        self._release(key)

    def _release(self, key: JobKey | None = None) -> None:
        if not self.is_held:
            raise RuntimeError("this permit was given back before")
        self.is_held = False
        self._slots.return_permit(key)


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
        return self.take_for_recovered() if self.free > 0 else None

    def take_for_recovered(self, key: JobKey | None = None) -> Permit:
        """A slot for a container that is there already; the one that `key` poisoned, if it did."""
        self._poisoned.discard(key) if key else None
        self._busy += 1
        return Permit(self)

    def clear_poison(self, key: JobKey) -> None:
        """The container of `key` is known to be gone."""
        self._poisoned.discard(key)
        self._notify()

    def return_permit(self, poisoned_by: JobKey | None) -> None:
        """A permit came back; only permits call this."""
        self._busy -= 1
        if poisoned_by is not None:
            self._poisoned.add(poisoned_by)
        self._notify()

    async def wait_until_free(self) -> None:
        """Wait until a slot may be used."""
        while self.free <= 0:
            await self._freed.wait()

    def _notify(self) -> None:
        self._freed.set()
        self._freed = anyio.Event()
