"""Messages leave JOBS from its middle while others are published, fetched and postponed: none of the rest is lost."""

import random
from pathlib import Path

import anyio

from bus.interface import JobQueue, QueueMessage
from bus.open import open_edge
from schemas.job import Pointer, Priority
from tests.support.nats_broker import run_broker
from tests.support.wait import wait_for

POOL = "echo"
JOBS, ROUNDS = 16, 12
LONGEST_S = 0.03


class Taker:
    """Takes whatever comes, postpones some of it first, and has done with it a moment later."""

    def __init__(self, queue: JobQueue, dice: random.Random) -> None:
        self._queue = queue
        self._dice = dice
        self.taken: set[Pointer] = set()

    async def run(self) -> None:
        """Without end, up to four at once."""
        slots = anyio.Semaphore(4)
        async with anyio.create_task_group() as tasks:
            while True:
                async with slots:
                    delivery = await self._queue.fetch(POOL, Priority.NORMAL)
                if delivery is None:
                    await self._queue.wait_for_messages([POOL], 0.02)
                elif self._dice.random() < 0.3:
                    await delivery.nak(self._dice.uniform(0.01, 0.3))
                else:
                    tasks.start_soon(self._work, delivery, slots)

    async def _work(self, delivery: QueueMessage, slots: anyio.Semaphore) -> None:
        async with slots:
            await anyio.sleep(self._dice.uniform(0, LONGEST_S))
            await delivery.ack()
            self.taken.add(delivery.pointer)


async def test_what_is_withdrawn_takes_nothing_else_with_it(tmp_path: Path):
    """With a purge of the subject, which was tried, most jobs were stuck within a second."""
    dice = random.Random(0)
    async with run_broker(tmp_path) as served, open_edge(served.settings("edge")) as bus:
        await bus.job_queue.ensure_consumers([POOL])
        taker = Taker(bus.job_queue, dice)
        kept: set[Pointer] = set()

        async def job(number: int) -> None:
            for round_ in range(1, ROUNDS + 1):
                pointer = Pointer(POOL, Priority.NORMAL, "ann", f"job-{number}", round_)
                await bus.job_queue.publish(pointer)
                await anyio.sleep(dice.uniform(0, LONGEST_S))
                if dice.random() < 0.5:
                    await bus.job_queue.remove(pointer)
                else:
                    kept.add(pointer)

        async def empty() -> bool:
            return not await bus.job_queue.list_pending()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(taker.run)
            async with anyio.create_task_group() as jobs:
                for number in range(JOBS):
                    jobs.start_soon(job, number)
            await wait_for(empty)
            tasks.cancel_scope.cancel()
        assert kept <= taker.taken
