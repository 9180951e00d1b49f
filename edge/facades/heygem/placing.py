"""Results into the shared folder: clients that share a disk with the server read `<data_root>/temp/<code>-r.mp4`.

A note of every `/easy/submit` lies in the edge's own folder until its result is in place, so that a restart forgets
none; a query waits for the result of its job, whoever submitted that.
"""

import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path

import structlog
from anyio import CancelScope, Event, Lock, move_on_after, open_file, to_thread

from bus.port import BusError, Records
from edge.facades.heygem.folder import TEMP
from edge.facades.heygem.translation import result_name, the_video
from edge.services.clock import micros
from edge.services.index import Index
from edge.services.standing import Step
from edge.store.port import Store, StoreError
from edge.store.spool import sync_folder
from schemas.errors import Refused
from schemas.events import RecordUnreadable
from schemas.job import File, Job, JobKey
from schemas.words import FINAL, Status

PATIENCE_S = 5.0  # a query waits this long for a copy under way
RETRY_S = 5.0  # a folder that is full or away is tried again

_log = structlog.get_logger()


class Place(Enum):
    """Where a result is."""

    THERE = auto()
    COMING = auto()
    GONE = auto()


class Placing:
    """`run` copies. `root` None: nothing is shared, every result is THERE. `notes`: the edge's own folder for them."""

    def __init__(self, root: Path | None, notes: Path, records: Records, store: Store, index: Index) -> None:
        self._root = root
        self._notes = notes
        self._records = records
        self._store = store
        self._index = index
        self._expected: Counter[JobKey] = Counter()  # how many submits each note stands for
        self._submitting: Counter[JobKey] = Counter()
        self._noting = Lock()
        self._due: dict[JobKey, Event] = {}  # in the order in which they are looked at
        self._woken = Event()
        index.watch(self._see)

    async def run(self) -> None:
        """Without end; beginning with what an earlier life left undone."""
        if self._root is None:
            return
        self._expected.update(await to_thread.run_sync(_noted, self._notes))
        await self._index.ready()
        for key in self._expected:
            self._look_at(key)
        while True:
            with move_on_after(RETRY_S if self._due else None):
                await self._woken.wait()
            self._woken = Event()
            for key, looked_at in list(self._due.items()):
                del self._due[key]  # what happens from here on is another reason to look at it
                if not await self._settle(key):
                    self._due.setdefault(key, Event())
                looked_at.set()

    @asynccontextmanager
    async def expecting(self, key: JobKey) -> AsyncIterator[None]:
        """Submit the job in this block: its result will be placed, even if this process dies in the block or later.

        Raises Refused `unavailable` when the note cannot be written.
        """
        if self._root is None:
            yield
            return
        await self._expect(key)
        self._submitting[key] += 1
        try:
            yield
        except BaseException:
            self._due.setdefault(key, Event())  # there may be no such job, and then nothing is to be placed
            raise
        finally:
            self._submitting[key] -= 1
            if not self._submitting[key]:
                del self._submitting[key]
            self._woken.set()

    async def _expect(self, key: JobKey) -> None:
        async with self._noting:
            try:
                if key not in self._expected:
                    await to_thread.run_sync(_note, self._notes, key)
            except OSError as error:
                why = f"the edge's data folder cannot be written ({error.strerror}): give it room"
                raise Refused("unavailable", why, retry_after_s=5) from error
            self._expected[key] += 1

    async def _forget(self, key: JobKey, submits: int) -> None:
        """Remove the note, unless there was another submit since it stood for `submits`."""
        async with self._noting:
            if self._expected[key] == submits:
                del self._expected[key]
                await to_thread.run_sync(_forget, self._notes, key)

    async def is_gone(self, job: Job) -> bool:
        """Whether the result of a job that succeeded cannot be had any more, or the job made none."""
        file = result_of(job)
        if file is None:
            return True
        kept = self._root is not None and await self._there(job)
        return not kept and await self._store.stat(file.sha256) is None

    async def where(self, job: Job) -> Place:
        """Where the result of a job that succeeded is, waiting PATIENCE_S for one that is on its way."""
        if await self.is_gone(job):
            return Place.GONE
        if await self._there(job):
            return Place.THERE
        looked_at = self._look_at(job.key)
        with move_on_after(PATIENCE_S):
            await looked_at.wait()
        return Place.THERE if await self._there(job) else Place.COMING

    def _see(self, steps: Sequence[Step]) -> None:
        """The index moved: what has ended, or was deleted, is looked at."""
        for before, after in steps:
            place = after or before
            if place is not None and place.key in self._expected and (after is None or after.status in FINAL):
                self._look_at(place.key)

    def _look_at(self, key: JobKey) -> Event:
        self._woken.set()
        return self._due.setdefault(key, Event())

    async def _settle(self, key: JobKey) -> bool:
        """Do for the job what can be done now; whether nothing is left to be tried again soon."""
        if key in self._submitting:
            return False  # the record may still tell of the round before
        submits = self._expected[key]
        try:
            entry = await self._records.read(key)
            job = None if entry is None else entry.recorded.job
            if job is not None and job.status is Status.SUCCEEDED:
                await self._place(job)
            if job is None or job.status is Status.SUCCEEDED:
                await self._forget(key, submits)
        except (BusError, RecordUnreadable, StoreError, OSError) as error:
            _log.warning("result_not_placed", owner=key.owner, job_id=key.id, error=str(error))
            return False
        return True

    async def _place(self, job: Job) -> None:
        file = result_of(job)
        if self._root is None or file is None or await self._there(job):
            return
        part = await to_thread.run_sync(_part, self._root, job)
        try:
            async with await open_file(part, "xb") as whole:
                async for block in self._store.read(file.sha256):
                    await whole.write(block)
            await to_thread.run_sync(_commit, part, _ended_ns(job))
        except KeyError:
            return  # the bytes were deleted meanwhile: a query says GONE
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(partial(part.unlink, missing_ok=True))
        _log.info("result_placed", owner=job.owner, job_id=job.id, bytes=file.bytes)

    async def _there(self, job: Job) -> bool:
        """Whether it lies there since the job's end: an older file of that name is another job's."""
        if self._root is None:
            return True
        place = self._root / TEMP / result_name(job.id)

        def look() -> bool:
            with suppress(OSError):
                return place.stat().st_mtime_ns >= _ended_ns(job)
            return False

        return await to_thread.run_sync(look)


def result_of(job: Job) -> File | None:
    """The output that clients are given."""
    return the_video(() if job.output is None else job.output.files)


def _ended_ns(job: Job) -> int:
    return 0 if job.finished_at is None else micros(job.finished_at) * 1000


def _part(root: Path, job: Job) -> Path:
    """Where the file grows, in no other copy's way; `temp` is made if need be. OSError when that leads out."""
    folder = root / TEMP
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # whoever shares it with us may be another user
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{folder} leads out of the shared folder: make it a folder of its own")
    return folder / f".{job.owner}.{secrets.token_hex(8)}.{result_name(job.id)}"  # in containers every edge is pid 1


def _commit(part: Path, ended_ns: int) -> None:
    """The whole file under its name, in one step and safe from a power cut; its time is the job's end."""
    part.chmod(0o644)
    os.utime(part, ns=(ended_ns, ended_ns))
    with part.open("rb") as file:
        os.fsync(file.fileno())
    _, owner, _, name = part.name.split(".", 3)
    part.replace(part.with_name(name))
    for left in part.parent.glob(f".{owner}.*.{name}"):  # of an edge that died; one that copies now finds it done
        left.unlink(missing_ok=True)
    sync_folder(part.parent)


def _noted(notes: Path) -> set[JobKey]:
    """Names of tokens hold no dot, so one parts them."""
    notes.mkdir(parents=True, exist_ok=True)
    pairs = (path.name.split(".") for path in notes.iterdir())
    return {JobKey(*pair) for pair in pairs if len(pair) == 2}


def _path(notes: Path, key: JobKey) -> Path:
    return notes / f"{key.owner}.{key.id}"


def _note(notes: Path, key: JobKey) -> None:
    notes.mkdir(parents=True, exist_ok=True)
    _path(notes, key).touch()
    sync_folder(notes)


def _forget(notes: Path, key: JobKey) -> None:
    _path(notes, key).unlink(missing_ok=True)
