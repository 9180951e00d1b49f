"""Results into the shared folder: clients that share a disk with the server read `<data_root>/temp/<code>-r.mp4`.

A note of every `/easy/submit` lies in the edge's own folder until its result is in place, so that a restart forgets
none; a query waits for the result of its job, whoever submitted that.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path

import structlog
from anyio import CancelScope, Event, move_on_after, open_file, to_thread

from bus.port import BusError, Records
from edge.facades.heygem.folder import TEMP
from edge.facades.heygem.translation import result_name, the_video
from edge.services.clock import micros
from edge.services.index import Index
from edge.services.standing import Step
from edge.store.port import Store, StoreError
from edge.store.spool import sync_folder
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
        self._expected: set[JobKey] = set()
        self._due: dict[JobKey, Event] = {}  # in the order in which they are looked at
        self._woken = Event()
        index.watch(self._see)

    async def run(self) -> None:
        """Without end; beginning with what an earlier life left undone."""
        if self._root is None:
            return
        self._expected |= await to_thread.run_sync(_noted, self._notes)
        await self._index.ready()
        for key in self._expected:
            self._look_at(key)
        while True:
            with move_on_after(RETRY_S if self._due else None):
                await self._woken.wait()
            self._woken = Event()
            for key, settled in list(self._due.items()):
                if await self._settle(key):
                    self._due.pop(key, None)
                    settled.set()

    async def expect(self, key: JobKey) -> None:
        """The result of this job is to be placed, whatever happens to this process. Before the job is made."""
        if self._root is not None and key not in self._expected:
            await to_thread.run_sync(_note, self._notes, key)
            self._expected.add(key)

    def reconsider(self, key: JobKey) -> None:
        """Its submit was refused: when there is no such job, nothing is to be placed."""
        if key in self._expected:
            self._look_at(key)

    async def where(self, job: Job) -> Place:
        """Where the result of a job that succeeded is, waiting PATIENCE_S for one that is on its way."""
        file = result_of(job)
        if self._root is None or file is None or await self._there(job):
            return Place.THERE
        if await self._store.stat(file.sha256) is None:
            return Place.GONE
        settled = self._look_at(job.key)
        with move_on_after(PATIENCE_S):
            await settled.wait()
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
        try:
            entry = await self._records.read(key)
            job = None if entry is None else entry.recorded.job
            if job is not None and job.status is Status.SUCCEEDED:
                await self._place(job)
            if job is None or job.status is Status.SUCCEEDED:
                self._expected.discard(key)
                await to_thread.run_sync(_forget, self._notes, key)
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
    folder.mkdir(exist_ok=True)
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
