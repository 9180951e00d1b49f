"""Waking up those who wait, and only them."""

import anyio
import anyio.lowlevel

from bus.notifier import Notifier


async def test_a_notification_wakes_everybody_who_waits():
    notifier, awake = Notifier(), list[int]()

    async def sleeper(number: int) -> None:
        await notifier.wait()
        awake.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(sleeper, 1)
        group.start_soon(sleeper, 2)
        await anyio.wait_all_tasks_blocked()
        notifier.notify()
    assert sorted(awake) == [1, 2]


async def test_a_notification_is_not_stored_for_those_who_wait_later():
    notifier = Notifier()
    notifier.notify()
    with anyio.move_on_after(0) as scope:
        await notifier.wait()
    assert scope.cancelled_caught


async def test_an_event_taken_before_a_check_is_set_by_a_notification_during_the_check():
    notifier = Notifier()
    changed = notifier.next_notification()
    await anyio.lowlevel.checkpoint()
    notifier.notify()
    await changed.wait()
    assert not notifier.next_notification().is_set()


async def test_waiting_for_a_condition_looks_again_at_each_notification():
    notifier, looks = Notifier(), list[int]()

    def is_third_look() -> bool:
        looks.append(len(looks))
        return len(looks) == 3

    async with anyio.create_task_group() as group:
        group.start_soon(notifier.wait_until, is_third_look)
        for known in (1, 2):
            await anyio.wait_all_tasks_blocked()
            assert len(looks) == known
            notifier.notify()
    assert len(looks) == 3
