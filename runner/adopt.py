"""What an earlier life left: containers in any state, and folders without one. Nothing of it is started again.

At the start of a life all of it is looked at; later, one job at a time, when its message comes and no execution knows.
"""

import re
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path

import anyio.to_thread
from msgspec.structs import replace

from bus.port import Conflict, Delivery, Entry
from runner.attempt import Ticket
from runner.catalogue import Kind
from runner.engines.port import NO_JOB, Found
from runner.fence import advance
from runner.life import Life
from runner.means import Means
from runner.roster import Roster
from runner.spare import PREFIX, Spare, became, send_start
from schemas.endpoint import Endpoint, Resources
from schemas.events import Adopted, Event, Recorded, RecordUnreadable, Released, Unknown
from schemas.failures import FAILURES, settle
from schemas.job import Job, JobKey
from schemas.words import ACTIVE, FINAL, is_token

HOST_LOST = "host_lost"
_NUMBER = re.compile("[0-9]{1,9}", re.ASCII)


class Fate(StrEnum):
    """What becomes of a container."""

    FOLLOW = "follow"  # running: follow it; exited: judge and collect
    FREE = "free"  # it never ran: the job goes back to the queue, at no cost
    REMOVE = "remove"  # its attempt is over
    LEAVE = "leave"  # an execution has it, or it is nothing we know: touch nothing


def fate(found: Found, recorded: Recorded | None, host: str) -> Fate:
    """What to do with a container, by the record of its job (None: there is none)."""
    mine = found.identity
    if mine.job == NO_JOB or recorded is None or _judged(recorded.event):
        return Fate.REMOVE
    job = recorded.job
    if (mine.round, mine.attempt) != (job.round, job.attempt):
        return Fate.REMOVE if (mine.round, mine.attempt) < (job.round, job.attempt) else Fate.LEAVE
    if job.status in FINAL or job.claim is None or job.claim.host != host:
        return Fate.REMOVE
    return Fate.FREE if found.state == "created" else Fate.FOLLOW


def _judged(event: Event | Unknown) -> bool:
    """Whether the attempt was ended by the life that ran it, killed before it cleared away: it counts once.

    What was released because nobody heard of its host is another thing: its container is still worth something.
    """
    return isinstance(event, Released) and event.code != HOST_LOST


def released(life: Life, job: Job) -> Event:
    """The event for an attempt whose host or container is gone."""
    why = "the host of this attempt is gone, or its container is"
    return settle(job, HOST_LOST, why, FAILURES[HOST_LOST], at=life.now(), jitter=life.jitter())


class Adopter:
    """Takes over for the life it is given."""

    def __init__(self, life: Life, means: Means, roster: Roster) -> None:
        self._life = life
        self._means = means
        self.roster = roster

    async def everything(self) -> None:
        """All containers of this installation and host, then the folders that none of them uses."""
        there = await self._find()
        for found in there:
            await self._life.insist("adopt", partial(self._take, found, None))
        named = {found.identity.folder for found in there}
        for folder in await anyio.to_thread.run_sync(folders, self._life.jobs):
            if folder.name not in named:
                await self._life.insist("tidy", partial(self._tidy, folder))

    async def one(self, entry: Entry, delivery: Delivery | None) -> None:
        """A job that this host claimed and no execution knows: take its container, or give the job back.

        Raises Conflict in the second case: the record asks for something else now.
        """
        job = entry.recorded.job
        for found in await self._of(job.key):
            await self._take(found, delivery)
        if job.round not in self.roster.rounds(job.key):
            await self._give_back(job.key, job.round, job.attempt)
            raise Conflict("the attempt was given back")

    async def poisoned(self) -> None:
        """The slots that a dead task left: take its container over, or find that there is none any more."""
        for key in self._means.slots.poisoned:
            for found in await self._of(key):
                await self._take(found, None)
            if key in self._means.slots.poisoned and not await self._of(key):
                self._means.slots.heal(key)

    async def _of(self, key: JobKey) -> list[Found]:
        return [one for one in await self._find() if (one.identity.owner, one.identity.job) == key]

    async def _find(self) -> list[Found]:
        ask = partial(self._life.engine.find, self._life.installation, self._life.host)
        found = await self._life.steadily("find", ask)
        return await anyio.to_thread.run_sync(claimed, self._life.jobs, found)

    async def _take(self, found: Found, delivery: Delivery | None) -> None:
        """Until the record and the container agree; a conflict means that the record has moved on."""
        mine = found.identity
        key = JobKey(mine.owner, mine.job)
        if mine.round in self.roster.rounds(key):
            return
        while True:
            try:
                entry = await self._life.bus.records.read(key) if mine.job != NO_JOB else None
            except RecordUnreadable as error:
                self._life.log.warning("record unreadable", owner=mine.owner, job_id=mine.job, why=str(error))
                return  # the container is kept: it may be the only proof of what happened
            verdict = fate(found, entry.recorded if entry else None, self._life.host)
            self._life.log.info("found", owner=mine.owner, job_id=mine.job, state=found.state, fate=verdict)
            try:
                await self._carry_out(verdict, found, entry, delivery)
            except Conflict:
                continue
            return

    async def _carry_out(self, verdict: Fate, found: Found, entry: Entry | None, delivery: Delivery | None) -> None:
        if verdict is Fate.FOLLOW and entry is not None:
            await self._follow(found, entry, delivery)
        if verdict is Fate.FREE and entry is not None and entry.recorded.job.status in ACTIVE:
            await advance(self._life, entry, released(self._life, entry.recorded.job))
        if verdict in {Fate.FREE, Fate.REMOVE}:
            await self._life.steadily("remove", partial(self._life.engine.remove, found.handle))
            await self._life.erase(self._life.jobs / found.identity.folder)

    async def _follow(self, found: Found, entry: Entry, delivery: Delivery | None) -> None:
        job = entry.recorded.job
        gpus = job.claim.gpus if job.claim else ()
        taken = await advance(self._life, entry, Adopted(self._life.claim(job.attempt, gpus), job.round))
        kind = self._means.kinds.get(job.endpoint) or _unknown(job.endpoint)
        holding = self._means.cards.hold(gpus, kind.endpoint)
        spare = None
        if found.identity.spare:
            spare = Spare(found.identity.folder, kind, holding, found.handle)
            # The life before may have been killed between its claim and the line; a second one starts nothing twice.
            await anyio.to_thread.run_sync(send_start, self._life.jobs / spare.folder / "job")
        ticket = Ticket(taken, kind, holding, found.handle, spare)
        self.roster.launch(ticket, self._means.slots.adopt(job.key), delivery)

    async def _tidy(self, folder: Path) -> None:
        place = await anyio.to_thread.run_sync(attempt_of, folder)
        with suppress(RecordUnreadable):  # then nothing is left that could be given back
            if place is not None:
                await self._give_back(*place)
        await self._life.erase(folder)

    async def _give_back(self, key: JobKey, round_: int, attempt: int) -> None:
        """Release the attempt if the record still says that this host is at it."""
        while (entry := await self._life.bus.records.read(key)) is not None:
            job = entry.recorded.job
            ours = job.claim is not None and job.claim.host == self._life.host
            if not ours or job.status not in ACTIVE or (job.round, job.attempt) != (round_, attempt):
                return
            try:
                await advance(self._life, entry, released(self._life, job))
            except Conflict:
                continue


def _unknown(endpoint: str) -> Kind:
    """A kind that this life was not given: it cannot tell how much disk such a job may use."""
    return Kind(Endpoint(name=endpoint, image="", resources=Resources(disk_mb=0)), Path())


def claimed(jobs: Path, there: list[Found]) -> list[Found]:
    """The same, but what was started ahead as the container of the job that it was given, if it was."""
    return [_as_claimed(jobs, found) for found in there]


def _as_claimed(jobs: Path, found: Found) -> Found:
    if found.identity.job != NO_JOB or not found.identity.spare:
        return found
    return replace(found, identity=became(jobs / found.identity.spare) or found.identity)


def folders(jobs: Path) -> list[Path]:
    """The folders that attempts, and containers started ahead of one, work or worked in."""
    return sorted(path for path in jobs.iterdir() if path.name.startswith(PREFIX) or path.name.count(".") == 3)


def attempt_of(folder: Path) -> tuple[JobKey, int, int] | None:
    """The job, round and attempt that worked in `folder`; None: nobody's did, or the name is none of ours."""
    if not folder.name.startswith(PREFIX):
        owner, job, *numbers = folder.name.split(".")
        if not all(map(is_token, (owner, job))) or not all(map(_NUMBER.fullmatch, numbers)):
            return None
        return JobKey(owner, job), int(numbers[0]), int(numbers[1])
    mine = became(folder)
    return (JobKey(mine.owner, mine.job), mine.round, mine.attempt) if mine else None
