"""What a job's followers are told before its program says anything: that its inputs are fetched, and what keeps them.

Only a fetch that takes a while is told: most inputs are here before anybody could read of it.
"""

import anyio

from bus.port import BusError
from runner.life import Life
from schemas.container import MAX_WORD
from schemas.feed import Place, ProgressNote
from schemas.job import Job

PATIENCE_S = 1.0
MOST = 100  # of these notes; they come before the first byte of output, so their offsets are below 0
FETCHING, STARTING = "fetching input", "starting"


class Prelude:
    """One attempt's. `why` is called whenever the fetch fails and is tried again."""

    def __init__(self, life: Life, job: Job) -> None:
        self._life = life
        self._job = job
        self._why = ""
        self._changed = anyio.Event()
        self._said = ""
        self._offset = -MOST

    def why(self, why: str) -> None:
        """The inputs cannot be fetched now, for this reason."""
        self._why = why
        self._changed.set()

    async def run(self) -> None:
        """Tell of the fetch for as long as it takes: the caller cancels this."""
        with anyio.move_on_after(PATIENCE_S):
            await self._changed.wait()
        while True:
            self._changed = anyio.Event()
            await self._say(f"{FETCHING}: {self._why}" if self._why else FETCHING)
            await self._changed.wait()

    async def over(self) -> None:
        """The inputs are here."""
        if self._said:
            await self._say(STARTING)

    async def _say(self, stage: str) -> None:
        """A broker that is away is not waited for: this is for people who look on."""
        if stage == self._said or self._offset >= 0:
            return
        place = Place(self._job.round, self._job.attempt, self._offset)
        note = ProgressNote(place, self._life.now(), 0.0, stage[:MAX_WORD])
        try:
            await self._life.bus.feed.publish(self._job.key, note)
        except BusError as error:
            self._life.away("tell of the fetch", error)
        else:
            self._said = stage
            self._offset += 1
