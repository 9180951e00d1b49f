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

from bus.interface import BusError, JobStore
from bus.secret_files import fsync_folder
from edge.core.clock import micros
from edge.facades.heygem.mapping import main_video, result_name
from edge.facades.heygem.shared_dir import TEMP_FOLDER
from edge.index.index import JobIndex
from edge.index.row import RowChange
from edge.store.port import BlobStore, StoreError
from schemas.events import RecordUnreadable
from schemas.ids import JobKey
from schemas.job import Job, OutputFile
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, Status

COPY_WAIT_TIMEOUT_S = 5.0  # a query waits this long for a copy under way
EXPORT_RETRY_INTERVAL_S = 5.0  # a folder that is full or away is tried again

_log = structlog.get_logger()


class ExportState(Enum):
    """Where a result is."""

    EXPORTED = auto()
    PENDING = auto()
    MISSING = auto()


class ResultExporter:
    """`run` copies. `root` None: nothing is shared, every result is THERE. `notes`: the edge's own folder for them."""

    def __init__(self, root: Path | None, notes: Path, records: JobStore, store: BlobStore, index: JobIndex) -> None:
        self._root = root
        self._notes = notes
        self._records = records
        self._store = store
        self._index = index
        self._expected: Counter[JobKey] = Counter()  # how many submits each note stands for
        self._submitting: Counter[JobKey] = Counter()
        self._notes_lock = Lock()
        self._due: dict[JobKey, Event] = {}  # in the order in which they are looked at
        self._work_available = Event()
        index.subscribe_changes(self._on_job_changes)

    async def run(self) -> None:
        """Without end; beginning with what an earlier life left undone."""
        if self._root is None:
            return
        self._expected.update(await to_thread.run_sync(_read_notes, self._notes))
        await self._index.wait_until_caught_up()
        for key in self._expected:
            self._schedule(key)
        while True:
            with move_on_after(EXPORT_RETRY_INTERVAL_S if self._due else None):
                await self._work_available.wait()
            self._work_available = Event()
            for key, looked_at in list(self._due.items()):
                del self._due[key]  # what happens from here on is another reason to look at it
                if not await self._process(key):
                    self._due.setdefault(key, Event())
                looked_at.set()

    @asynccontextmanager
    async def expect_result(self, key: JobKey) -> AsyncIterator[None]:
        """Submit the job in this block: its result will be placed, even if this process dies in the block or later.

        Raises Refused `unavailable` when the note cannot be written.
        """
        if self._root is None:
            yield
            return
        await self._record_expected(key)
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
            self._work_available.set()

    async def _record_expected(self, key: JobKey) -> None:
        async with self._notes_lock:
            try:
                if key not in self._expected:
                    await to_thread.run_sync(_write_note, self._notes, key)
            except OSError as error:
                why = f"the edge's data folder cannot be written ({error.strerror}): give it room"
                raise ProblemError("unavailable", why, retry_after_s=5) from error
            self._expected[key] += 1

    async def _drop_expected(self, key: JobKey, submits: int) -> None:
        """Remove the note, unless there was another submit since it stood for `submits`."""
        async with self._notes_lock:
            if self._expected[key] == submits:
                del self._expected[key]
                await to_thread.run_sync(_remove_note, self._notes, key)

    async def is_missing(self, job: Job) -> bool:
        """Whether the result of a job that succeeded cannot be had any more, or the job made none."""
        file = result_file(job)
        if file is None:
            return True
        kept = self._root is not None and await self._is_exported(job)
        return not kept and await self._store.stat(file.sha256) is None

    async def export_state(self, job: Job) -> ExportState:
        """Where the result of a job that succeeded is, waiting PATIENCE_S for one that is on its way."""
        if await self.is_missing(job):
            return ExportState.MISSING
        if await self._is_exported(job):
            return ExportState.EXPORTED
        looked_at = self._schedule(job.key)
        with move_on_after(COPY_WAIT_TIMEOUT_S):
            await looked_at.wait()
        return ExportState.EXPORTED if await self._is_exported(job) else ExportState.PENDING

    def _on_job_changes(self, steps: Sequence[RowChange]) -> None:
        """The index moved: what has ended, or was deleted, is looked at."""
        for before, after in steps:
            place = after or before
            if place is not None and place.key in self._expected and (after is None or after.status in FINAL_STATUSES):
                self._schedule(place.key)

    def _schedule(self, key: JobKey) -> Event:
        self._work_available.set()
        return self._due.setdefault(key, Event())

    async def _process(self, key: JobKey) -> bool:
        """Do for the job what can be done now; whether nothing is left to be tried again soon."""
        if key in self._submitting:
            return False  # the record may still tell of the round before
        submits = self._expected[key]
        try:
            entry = await self._records.read(key)
            job = None if entry is None else entry.record.job
            if job is not None and job.status is Status.SUCCEEDED:
                await self._export(job)
            if job is None or job.status is Status.SUCCEEDED:
                await self._drop_expected(key, submits)
        except (BusError, RecordUnreadable, StoreError, OSError) as error:
            _log.warning("result_not_placed", owner=key.owner, job_id=key.id, error=str(error))
            return False
        return True

    async def _export(self, job: Job) -> None:
        file = result_file(job)
        if self._root is None or file is None or await self._is_exported(job):
            return
        part = await to_thread.run_sync(_partial_path, self._root, job)
        try:
            async with await open_file(part, "xb") as whole:
                async for block in self._store.read(file.sha256):
                    await whole.write(block)
            await to_thread.run_sync(_commit_file, part, _ended_ns(job))
        except KeyError:
            return  # the bytes were deleted meanwhile: a query says GONE
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(partial(part.unlink, missing_ok=True))
        _log.info("result_placed", owner=job.owner, job_id=job.id, bytes=file.bytes)

    async def _is_exported(self, job: Job) -> bool:
        """Whether it lies there since the job's end: an older file of that name is another job's."""
        if self._root is None:
            return True
        place = self._root / TEMP_FOLDER / result_name(job.id)

        def look() -> bool:
            with suppress(OSError):
                return place.stat().st_mtime_ns >= _ended_ns(job)
            return False

        return await to_thread.run_sync(look)


def result_file(job: Job) -> OutputFile | None:
    """The output that clients are given."""
    return main_video(() if job.output is None else job.output.files)


def _ended_ns(job: Job) -> int:
    return 0 if job.finished_at is None else micros(job.finished_at) * 1000


def _partial_path(root: Path, job: Job) -> Path:
    """Where the file grows, in no other copy's way; `temp` is made if need be. OSError when that leads out."""
    folder = root / TEMP_FOLDER
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # whoever shares it with us may be another user
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{folder} leads out of the shared folder: make it a folder of its own")
    return folder / f".{job.owner}.{secrets.token_hex(8)}.{result_name(job.id)}"  # in containers every edge is pid 1


def _commit_file(part: Path, ended_ns: int) -> None:
    """The whole file under its name, in one step and safe from a power cut; its time is the job's end."""
    part.chmod(0o644)
    os.utime(part, ns=(ended_ns, ended_ns))
    with part.open("rb") as file:
        os.fsync(file.fileno())
    _, owner, _, name = part.name.split(".", 3)
    part.replace(part.with_name(name))
    for left in part.parent.glob(f".{owner}.*.{name}"):  # of an edge that died; one that copies now finds it done
        left.unlink(missing_ok=True)
    fsync_folder(part.parent)


def _read_notes(notes: Path) -> set[JobKey]:
    """Names of tokens hold no dot, so one parts them."""
    notes.mkdir(parents=True, exist_ok=True)
    pairs = (path.name.split(".") for path in notes.iterdir())
    return {JobKey(*pair) for pair in pairs if len(pair) == 2}


def _note_path(notes: Path, key: JobKey) -> Path:
    return notes / f"{key.owner}.{key.id}"


def _write_note(notes: Path, key: JobKey) -> None:
    notes.mkdir(parents=True, exist_ok=True)
    _note_path(notes, key).touch()
    fsync_folder(notes)


def _remove_note(notes: Path, key: JobKey) -> None:
    _note_path(notes, key).unlink(missing_ok=True)
