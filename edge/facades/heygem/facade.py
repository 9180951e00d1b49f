"""The HeyGem facade below its routes: settings, the files of the shared folder, and the export of results into it.

`edge.settings` imports this module in every command, so it must not import Litestar.

Of the shared folder, files that clients name are opened, and nothing outside of it. Clients write to the folder while
the edge reads it. Clients with access to it read their results there: `<data_root>/temp/<code>-r.mp4`. Every
`/easy/submit` leaves a note in a folder of the edge until its result is exported, so a restart loses none. A query
waits for the export of its job, even if the job was submitted in another way.
"""

import os
import secrets
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
from anyio import CancelScope, Event, Lock, move_on_after, open_file, to_thread
from msgspec import Meta, Struct

from bus.interface import BusError, JobStore
from bus.notifier import Notifier
from bus.secret_files import fsync_folder
from edge.core.clock import micros
from edge.facades.heygem.mapping import main_video, result_name
from edge.index.index import JobIndex
from edge.index.rows import RowChange
from edge.store.port import BLOCK_BYTES, BlobStore, StoreError
from schemas.events import RecordUnreadable
from schemas.job import FINAL_STATUSES, Job, JobKey, OutputFile, Status, Token
from schemas.problems import ProblemError

TEMP_FOLDER = "temp"
_VENDOR_MOUNT = "/code/data/"  # the mount point in the vendor's container
_NAME_LIMIT_BYTES = 4096  # PATH_MAX; resolving a name with a million folders takes minutes
_OPEN_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OPEN_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would wait for its writer

_log = structlog.get_logger()


class SharedFile:
    """A regular file of the folder, open for reading. `read_chunks` closes it."""

    def __init__(self, handle: int, name: str) -> None:
        self._handle = handle
        self.name = name

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes. A change while reading changes the stored asset, whose digest is that of the bytes read."""
        try:
            while block := await to_thread.run_sync(os.read, self._handle, BLOCK_BYTES):
                yield block
        finally:
            self.close()

    def close(self) -> None:
        """Close the file without reading it."""
        os.close(self._handle)


def open_shared_file(root: Path, name: str) -> SharedFile:
    """Open the file that `name` means. Blocking. Raises ProblemError `input_invalid` for an unknown name."""
    if len(name.encode(errors="replace")) <= _NAME_LIMIT_BYTES:
        for path in _candidate_paths(root, name):
            try:
                handle = _open_inside(os.path.realpath(root), os.path.realpath(path))
            except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the name
                continue
            return SharedFile(handle, path.name)
    raise ProblemError(
        "input_invalid",
        f"{name[:100]!r} is not a file of the shared folder: put it into {TEMP_FOLDER}/ there,"
        " or name an http(s) URL or sha256:",
    )


def _candidate_paths(root: Path, name: str) -> Iterator[Path]:
    """Yield the paths that `name` may mean. It is relative to temp/, as on the vendor's server, or to the folder."""
    if name.startswith(_VENDOR_MOUNT):
        yield root / name.removeprefix(_VENDOR_MOUNT).lstrip("/")
    else:
        yield root / TEMP_FOLDER / name
        yield root / name


def _open_inside(root: str, real: str) -> int:
    """Open `real`, a path without symbolic links, one folder at a time below `root`.

    A link that replaces a folder after the path was resolved is not followed. Raises OSError, ValueError.
    """
    inner = Path(real).relative_to(root).parts
    if not inner:
        raise IsADirectoryError(real)
    folder = os.open(root, _OPEN_FOLDER_FLAGS)
    try:
        for part in inner[:-1]:
            deeper = os.open(part, _OPEN_FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = deeper
        return _require_regular_file(os.open(inner[-1], _OPEN_FILE_FLAGS, dir_fd=folder))
    finally:
        os.close(folder)


def _require_regular_file(handle: int) -> int:
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError("not a regular file")


COPY_WAIT_TIMEOUT_S = 5.0  # how long a query waits for a running copy
EXPORT_RETRY_INTERVAL_S = 5.0  # between attempts while the folder is full or missing


class ExportState(Enum):
    """The place of the result of a job that succeeded."""

    EXPORTED = auto()  # in the shared folder
    PENDING = auto()  # in the store, not yet in the shared folder
    MISSING = auto()  # in neither


class ResultExporter:
    """Copies results in `run`. `root`: the shared folder; None: every result counts as exported. `notes`: its notes."""

    def __init__(self, root: Path | None, notes: Path, records: JobStore, store: BlobStore, index: JobIndex) -> None:
        self._root = root
        self._notes = notes
        self._records = records
        self._store = store
        self._index = index
        self._expected: Counter[JobKey] = Counter()  # jobs with a note, with the number of their submits
        self._submitting: Counter[JobKey] = Counter()
        self._notes_lock = Lock()
        self._due: dict[JobKey, Event] = {}  # jobs to process, in this order; the event is set after the next attempt
        self._work_available = Notifier()
        index.subscribe_changes(self._on_job_changes)

    async def run(self) -> None:
        """Export results without end, starting with the notes of earlier processes."""
        if self._root is None:
            return
        self._expected.update(await to_thread.run_sync(_read_notes, self._notes))
        await self._index.wait_until_caught_up()
        for key in self._expected:
            self._schedule(key)
        while True:
            work = self._work_available.next_notification()
            for key, attempted in list(self._due.items()):
                del self._due[key]  # a change during the attempt schedules another one
                if not await self._process(key):
                    self._due.setdefault(key, Event())
                attempted.set()
            with move_on_after(EXPORT_RETRY_INTERVAL_S if self._due else None):
                await work.wait()

    @asynccontextmanager
    async def expect_result(self, key: JobKey) -> AsyncIterator[None]:
        """Write a note for the job that the block submits, so that its result is exported even after a crash.

        Raises ProblemError `unavailable` when the note cannot be written.
        """
        if self._root is None:
            yield
            return
        await self._record_expected(key)
        self._submitting[key] += 1
        try:
            yield
        except BaseException:
            self._due.setdefault(key, Event())  # drops the note if there is no such job
            raise
        finally:
            self._submitting[key] -= 1
            if not self._submitting[key]:
                del self._submitting[key]
            self._work_available.notify()

    async def _record_expected(self, key: JobKey) -> None:
        async with self._notes_lock:
            try:
                if key not in self._expected:
                    await to_thread.run_sync(_write_note, self._notes, key)
            except OSError as error:
                detail = f"the edge's data folder cannot be written ({error.strerror}): free disk space"
                raise ProblemError("unavailable", detail, retry_after_s=5) from error
            self._expected[key] += 1

    async def _drop_expected(self, key: JobKey, submits: int) -> None:
        """Remove the note, unless the number of submits has changed from `submits`."""
        async with self._notes_lock:
            if self._expected[key] == submits:
                del self._expected[key]
                await to_thread.run_sync(_remove_note, self._notes, key)

    async def is_missing(self, job: Job) -> bool:
        """Return whether a job that succeeded has no result, or its result was deleted everywhere."""
        file = result_file(job)
        if file is None:
            return True
        is_shared = self._root is not None and await self._is_exported(job)
        return not is_shared and await self._store.stat(file.sha256) is None

    async def export_state(self, job: Job) -> ExportState:
        """Return where the result of a job that succeeded is. Waits up to COPY_WAIT_TIMEOUT_S for a running copy."""
        if await self.is_missing(job):
            return ExportState.MISSING
        if await self._is_exported(job):
            return ExportState.EXPORTED
        attempted = self._schedule(job.key)
        with move_on_after(COPY_WAIT_TIMEOUT_S):
            await attempted.wait()
        return ExportState.EXPORTED if await self._is_exported(job) else ExportState.PENDING

    def _on_job_changes(self, changes: Sequence[RowChange]) -> None:
        """Schedule the expected jobs that have ended or were deleted."""
        for before, after in changes:
            row = after or before
            if row is not None and row.key in self._expected and (after is None or after.status in FINAL_STATUSES):
                self._schedule(row.key)

    def _schedule(self, key: JobKey) -> Event:
        self._work_available.notify()
        return self._due.setdefault(key, Event())

    async def _process(self, key: JobKey) -> bool:
        """Export the result of one job if it has ended. Return False if another attempt is needed soon."""
        if key in self._submitting:
            return False  # the record may still show the previous round
        submits = self._expected[key]
        try:
            entry = await self._records.read(key)
            job = None if entry is None else entry.record.job
            if job is not None and job.status is Status.SUCCEEDED:
                await self._export(job)
            if job is None or job.status is Status.SUCCEEDED:
                await self._drop_expected(key, submits)
        except (BusError, RecordUnreadable, StoreError, OSError) as error:
            _log.warning("result_export_failed", owner=key.owner, job_id=key.id, error=str(error))
            return False
        return True

    async def _export(self, job: Job) -> None:
        file = result_file(job)
        if self._root is None or file is None or await self._is_exported(job):
            return
        partial_file = await to_thread.run_sync(_partial_path, self._root, job)
        try:
            async with await open_file(partial_file, "xb") as copy:
                async for block in self._store.read(file.sha256):
                    await copy.write(block)
            await to_thread.run_sync(_commit_file, partial_file, _ended_ns(job))
        except KeyError:
            return  # the asset was deleted during the copy: a query reports MISSING
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(partial(partial_file.unlink, missing_ok=True))
        _log.info("result_exported", owner=job.owner, job_id=job.id, bytes=file.bytes)

    async def _is_exported(self, job: Job) -> bool:
        """Return whether the result is in the shared folder. A file older than the job's end is of another job."""
        if self._root is None:
            return True
        path = self._root / TEMP_FOLDER / result_name(job.id)

        def is_current() -> bool:
            with suppress(OSError):
                return path.stat().st_mtime_ns >= _ended_ns(job)
            return False

        return await to_thread.run_sync(is_current)


def result_file(job: Job) -> OutputFile | None:
    """Return the output that is the result for clients."""
    return main_video(() if job.output is None else job.output.files)


def _ended_ns(job: Job) -> int:
    return 0 if job.finished_at is None else micros(job.finished_at) * 1000


def _partial_path(root: Path, job: Job) -> Path:
    """Return a new path for a copy in progress, and create `temp` if needed.

    Raises OSError when `temp` leads out of the shared folder.
    """
    folder = root / TEMP_FOLDER
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # clients may run as another user
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{folder} leads out of the shared folder: replace the link by a folder")
    return (
        folder / f".{job.owner}.{secrets.token_hex(8)}.{result_name(job.id)}"
    )  # a pid would not be unique: in containers every edge is pid 1


def _commit_file(copy: Path, ended_ns: int) -> None:
    """Rename the finished copy to its name, durably. Its modification time is the end of the job."""
    copy.chmod(0o644)
    os.utime(copy, ns=(ended_ns, ended_ns))
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    _, owner, _, name = copy.name.split(".", 3)
    copy.replace(copy.with_name(name))
    for leftover in copy.parent.glob(f".{owner}.*.{name}"):  # of a crashed edge; a running copy finds its work done
        leftover.unlink(missing_ok=True)
    fsync_folder(copy.parent)


def _read_notes(notes: Path) -> set[JobKey]:
    """Return the jobs with a note. A dot separates owner and id, since neither contains one."""
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


class HeygemSettings(Struct, frozen=True):
    """The `[heygem]` section: routes for clients of HeyGem.

    A client that may submit can name every file in `data_root`, so share it only between clients that trust each other.
    Every program and user of this machine can submit jobs at `keyless_port` and read the jobs of `owner`. So can every
    client that reaches the port through a proxy or tunnel that adds no header.
    """

    enabled: bool = False
    """Serve `/easy/…`, the routes of a HeyGem server. `lamplighter up` turns it on unless this says otherwise."""
    endpoint: Token = "heygem"
    """The endpoint that runs the jobs of these clients. Its input has the assets `video` and `audio`."""
    data_root: Path | None = None
    """Folder that the edge shares with these clients. The vendor's container mounts it at /code/data."""
    owner: Token = "easy"
    """The owner of jobs that arrive at `keyless_port`."""
    keyless_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port on 127.0.0.1 where `/easy/…` needs no key; 0 disables it."""
    tts_endpoint: Token = "tts"
    """The endpoint that turns the text of these clients into speech. Its input has `text`, and may have `voice`."""
    tts_root: Path | None = None
    """Folder of the voices of these clients. The vendor's speech container mounts it at /code/data."""
    tts_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port on 127.0.0.1 for the vendor's speech routes, without a key (its own is 18180); 0 disables it."""


class HeygemFacade(Struct, frozen=True):
    """The state of the facade at one edge."""

    settings: HeygemSettings
    result_exporter: ResultExporter


def make_heygem_facade(
    settings: HeygemSettings, data: Path, records: JobStore, store: BlobStore, index: JobIndex
) -> HeygemFacade | None:
    """Build the state of the facade; None if it is disabled. `data`: the data folder of the edge, for notes."""
    if not settings.enabled:
        return None
    return HeygemFacade(settings, ResultExporter(settings.data_root, data / "placing", records, store, index))
