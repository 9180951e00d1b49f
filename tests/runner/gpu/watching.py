"""A watch over real nvidia-ml-py on a stub library, quick enough for tests."""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from runner.gpu.child import nvml
from runner.gpu.watch import Timing, Watch
from schemas.gpu import Snapshot
from tests.runner.gpu.cards import StubCards

DEADLINE_S = 20
QUICK = Timing(first_s=5.0, silence_s=1.0, first_pause_s=0.05)


@asynccontextmanager
async def watching(cards: StubCards, timing: Timing = QUICK, renew_s: float = 60.0) -> AsyncIterator[Watch]:
    watch = Watch(nvml(0.05, renew_s, cards.env), clock=time.time, random=random.random, timing=timing)
    with anyio.fail_after(DEADLINE_S):
        async with watch:
            yield watch


async def until(watch: Watch, holds: Callable[[Snapshot], bool]) -> Snapshot:
    snapshot = watch.snapshot()
    while not holds(snapshot):
        snapshot = await watch.changed(snapshot)
    return snapshot
