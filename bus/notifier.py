"""Wake the tasks of one event loop that wait for a change. The caller of `notify` keeps the state."""

import asyncio
from collections.abc import Callable


class Notifier:
    """A condition without a lock: `notify` wakes all tasks that wait now, and none that wait later.

    A notification is not stored. So check the state first and wait only while it is not as wanted, without an `await`
    between the two; `wait_until` does that. Where an `await` has to stand between them, take `next_notification` before
    the check.
    """

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None  # None while no task waits: each submit notifies several

    def notify(self) -> None:
        """Wake all waiting tasks. Call it after the state was changed, on the event loop's own thread."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    def next_notification(self) -> asyncio.Event:
        """Return an event that the next `notify` sets."""
        if self._event is None:
            self._event = asyncio.Event()
        return self._event

    async def wait(self) -> None:
        """Return at the next notification."""
        await self.next_notification().wait()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` is true: at once, or as soon as a notification finds it true."""
        while not condition():
            await self.wait()
