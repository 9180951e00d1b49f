"""Slots of one host, each with room for one container, and the permits to use them.

A permit is the right to run one container in one slot. It is released once the container is known to be gone. If that
is not known, the slot is poisoned: it stays unused until recovery has found out, and until then the container keeps
its GPUs. Before a permit is released, its release may be announced, so that the next job is looked for.
"""

from collections.abc import Callable

from bus.notifier import Notifier
from schemas.job import JobKey


class Permit:
    """One slot in use. Return it exactly once, with `release` or with `poison`."""

    def __init__(self, slots: "Slots") -> None:
        self._slots = slots
        self.is_held = True

    def release(self) -> None:
        """Return the slot: the container is gone."""
        if not self.is_held:
            raise RuntimeError("this permit was already returned")
        self.is_held = False
        self._slots.return_permit(self)

    def announce_release(self, pool: str) -> None:
        """Say that the slot will be free in a moment, in a container of an endpoint of this pool."""
        self._slots.announce_release(self, pool)

    def poison(self, key: JobKey, on_cleared: Callable[[], None]) -> None:
        """Block the slot until it is known what became of the container of `key`, then call `on_cleared`.

        A slot that was released when the container exited is taken again.
        """
        if not self.is_held:
            self._slots.take_for_recovered()
            self.is_held = True
        self._slots.add_poison(key, on_cleared)
        self.release()


class Slots:
    """`count` slots. A recovered container runs already, so it may exceed the count."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._busy = 0
        self._poisoned: dict[JobKey, list[Callable[[], None]]] = {}
        self._announced: dict[Permit, str] = {}
        self._freed = Notifier()

    @property
    def free(self) -> int:
        """Return the number of usable slots; below 0 while recovered jobs exceed the count."""
        return self.count - self._busy - len(self._poisoned)

    @property
    def poisoned(self) -> frozenset[JobKey]:
        """Return the jobs whose containers block a slot."""
        return frozenset(self._poisoned)

    def take(self) -> Permit | None:
        """Take a slot for a new job; return None when all are in use."""
        return self.take_for_recovered() if self.free > 0 else None

    def take_for_recovered(self, key: JobKey | None = None) -> Permit:
        """Take a slot for a container that runs already: the slot that `key` poisoned, if there is one."""
        if key:
            self._remove_poison(key)
        self._busy += 1
        return Permit(self)

    def clear_poison(self, key: JobKey) -> None:
        """Unblock the slot of `key`: its container is known to be gone."""
        self._remove_poison(key)
        self._freed.notify()

    def add_poison(self, key: JobKey, on_cleared: Callable[[], None]) -> None:
        """Block a slot for the container of `key`. Only `Permit` calls this."""
        self._poisoned.setdefault(key, []).append(on_cleared)

    def _remove_poison(self, key: JobKey) -> None:
        for on_cleared in self._poisoned.pop(key, []):
            on_cleared()

    def return_permit(self, permit: Permit) -> None:
        """Take a permit back. Only `Permit` calls this."""
        self._announced.pop(permit, None)
        self._busy -= 1
        self._freed.notify()

    def announce_release(self, permit: Permit, pool: str) -> None:
        """Note that a slot will be free in a moment. Only `Permit` calls this."""
        self._announced[permit] = pool
        self._freed.notify()

    async def wait_until_free(self) -> None:
        """Wait until a new job can have a slot."""
        await self._freed.wait_until(lambda: self.free > 0)

    async def wait_until_announced(self) -> frozenset[str]:
        """Wait until a slot is free, or its release is announced. Return the pools of the announcements.

        Each is returned once; none if a slot is free.
        """
        await self._freed.wait_until(lambda: self.free > 0 or bool(self._announced))
        announced = frozenset(self._announced.values()) if self.free <= 0 else frozenset()
        self._announced.clear()
        return announced
