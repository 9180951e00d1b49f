"""Bounded concurrency: the limit, the order of the results, and errors; a queue that loses nothing."""

from functools import partial

import anyio
import anyio.lowlevel
import pytest

from edge.core.concurrency import BoundedQueue, gather_bounded


async def test_results_come_in_the_order_of_the_calls_and_no_more_than_the_limit_run_at_once() -> None:
    running, most = 0, 0
    turns = [anyio.Event() for _ in range(5)]

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if number == 0:
            turns[1].set()  # the first call ends after the second
            await turns[0].wait()
        else:
            await turns[1].wait()
            turns[0].set()
        running -= 1
        return number

    assert await gather_bounded([partial(call, number) for number in range(5)], 2) == [0, 1, 2, 3, 4]
    assert most == 2
    assert await gather_bounded([], 2) == []


async def test_an_error_of_one_call_cancels_the_others() -> None:
    cancelled = False

    async def wait() -> None:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled = True
            raise

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("on purpose")

    with pytest.raises(ExceptionGroup) as caught:
        await gather_bounded([wait, fail], 2)
    assert caught.value.subgroup(ValueError) is not None
    assert cancelled


async def test_a_cancelled_reader_leaves_the_items_in_the_queue() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.get_batch, 5)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    await queue.put(1)
    assert queue.try_put(2)
    assert not queue.try_put(3), "the queue is full"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.put, 3)
        await anyio.wait_all_tasks_blocked()
        assert await queue.get_batch(1) == [1]
    assert await queue.get_batch(5) == [2, 3]
