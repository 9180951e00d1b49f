"""The files of a job: inputs, fetched ahead and staged in its folder before the start, and outputs, collected after it.

While all slots are busy, the inputs of the next job are fetched into the cache. A runner has no right to look into the
work queue. So it takes the next message and returns it at once: no other host gets it for PEEK_NAK_DELAY_S, and then it
is delivered first again. Nothing of the job is claimed.

The job's folder has its inputs under plain names, and job.json. The container is not trusted, so nothing in out/ is
followed or guessed. The collection blocks: call it in a thread, after the container has exited.
"""

import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from bus.interface import BusError, QueueMessage
from bus.notifier import Notifier
from runner.assets.port import AssetError, AssetTransfer
from runner.context import RunnerContext
from runner.endpoints import LocalEndpoint
from runner.execution.disk_usage import DISK_REMEDY, to_mib
from schemas.asset import AssetField, Digest, InvalidDigest, asset_fields, parse_digest, safe_name
from schemas.container_protocol import (
    JOB_FILE,
    OUTPUT_FILE,
    PARTIAL_FILE_PREFIX,
    WORD_LIMIT_CHARS,
    JobFile,
    JobTimeouts,
)
from schemas.endpoint import Endpoint
from schemas.events import DECODE_ERRORS, FeedPosition, ProgressMessage, RecordUnreadable
from schemas.job import NESTING_LIMIT, OUTPUT_DATA_LIMIT_BYTES, Job, Pointer, Status, is_too_deep

PEEK_NAK_DELAY_S = 0.05
PEEK_TIMEOUT_S = 5.0  # a broker may deliver the message and then not accept the nak


async def prefetch_inputs(
    context: RunnerContext, endpoints: Mapping[str, LocalEndpoint], fetch: Callable[[], Awaitable[QueueMessage | None]]
) -> bool:
    """Fetch the inputs of the job of the next message into the cache; return whether there was a message.

    Raises BusError. An input that cannot be fetched is skipped: the job will report why.
    """
    pointer = await _peek(fetch)
    job = await _read_queued_job(context, pointer)
    if job is None or job.endpoint not in endpoints:
        return pointer is not None
    for field in asset_fields(endpoints[job.endpoint].config.input, job.input):
        try:
            await context.assets.prefetch(job.owner, parse_digest(field.value))
        except (AssetError, InvalidDigest, OSError) as error:
            context.bind_log(job).debug("prefetch_failed", error=str(error))
    return True


async def peek_job(context: RunnerContext, fetch: Callable[[], Awaitable[QueueMessage | None]]) -> Job | None:
    """Return the job of the next message, if it is queued. Nothing of it is claimed. Raises BusError."""
    return await _read_queued_job(context, await _peek(fetch))


async def _peek(fetch: Callable[[], Awaitable[QueueMessage | None]]) -> Pointer | None:
    """Take a message and return it at once.

    Shielded: a message that is fetched and not returned is invisible to every runner for half a minute.
    """
    with anyio.move_on_after(PEEK_TIMEOUT_S, shield=True):
        delivery = await fetch()
        if delivery is None:
            return None
        await delivery.nak(PEEK_NAK_DELAY_S)
        return delivery.pointer
    return None


async def _read_queued_job(context: RunnerContext, pointer: Pointer | None) -> Job | None:
    """Return the job of this round if it is queued."""
    if pointer is None:
        return None
    try:
        entry = await context.bus.job_store.read(pointer.key)
    except RecordUnreadable:
        return None
    job = entry.record.job if entry else None
    return job if job is not None and (job.status, job.round) == (Status.QUEUED, pointer.round) else None


INPUT_LENGTH_LIMIT_S = 30 * 86400.0  # a client may send any number


class InvalidJobInput(Exception):
    """The input can never be staged; the message says why."""


def job_timeouts(job: Job, endpoint: Endpoint) -> JobTimeouts:
    """Return the timeouts: those of the policy, else base_s + per_input_s x the job's seconds of input."""
    limits = endpoint.timeouts
    value = job.input.get(endpoint.input_seconds) if endpoint.input_seconds else None
    input_s = min(max(0.0, value), INPUT_LENGTH_LIMIT_S) if isinstance(value, int | float) else 0.0
    by_input = limits.base_s + limits.per_input_s * input_s
    return JobTimeouts(job.policy.execution_timeout_s or by_input, job.policy.stall_timeout_s)


def assign_file_names(fields: list[AssetField], suffixes: Mapping[str, str]) -> Mapping[str, str]:
    """Return a file name for every asset field, by the field's path.

    It is `video.mp4` for the field `video` of an asset with the suffix `.mp4`. `suffixes` is by the field's value. The
    same file in two fields has two names.
    """
    names: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for field in fields:
        stem = free = safe_name(field.name)
        while free in taken:
            taken[stem] += 1
            free = f"{stem}-{taken[stem]}"
        taken[free] = 1
        names[field.path] = f"{free}{suffixes.get(field.value, '')}"
    return names


def substitute_file_names(value: Any, names: Mapping[str, str], path: str = "$") -> Any:
    """Return `value` with the file name in place of every field of `names`."""
    if isinstance(value, Mapping):
        return {key: substitute_file_names(value, names, f"{path}.{key}") for key, value in value.items()}
    if isinstance(value, list):
        return [substitute_file_names(value, names, f"{path}[{at}]") for at, value in enumerate(value)]
    return names.get(path, value) if isinstance(value, str) else value


async def stage_inputs(job: Job, endpoint: Endpoint, job_dir: Path, assets: AssetTransfer) -> Mapping[str, str]:
    """Fetch the inputs into in/; return the files' names by field path.

    Raises InvalidJobInput, AssetGone, EdgeUnavailable, OSError (disk).
    """
    fields = asset_fields(endpoint.input, job.input)
    digests = {field.value: _parse_digest(field) for field in fields}
    names = assign_file_names(
        fields, {value: await assets.filename_suffix(job.owner, digest) for value, digest in digests.items()}
    )
    for field in fields:
        path = job_dir / "in" / names[field.path]
        await anyio.to_thread.run_sync(_clear_target, path)
        await assets.stage(job.owner, digests[field.value], path)
    return names


def write_job_file(  # noqa: PLR0913, PLR0917 - each is one fact of the job or one folder
    job: Job,
    names: Mapping[str, str],
    timeouts: JobTimeouts,
    job_dir: Path,
    run_dir: Path,
    traceparent: str | None = None,
) -> None:
    """Write job.json, with the file's name in every asset field. Blocking; raises OSError.

    Created in `run_dir` and moved in. A warm container may write to its folder, and could otherwise put a link there.
    """
    job_file = JobFile(
        id=job.id,
        owner=job.owner,
        endpoint=job.endpoint,
        round=job.round,
        attempt=job.attempt,
        input=substitute_file_names(job.input, names),
        timeouts=timeouts,
        traceparent=traceparent,
    )
    job_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / JOB_FILE
    temporary.write_bytes(msgspec.json.encode(job_file))
    temporary.chmod(0o644)
    temporary.replace(job_dir / JOB_FILE)


def _parse_digest(field: AssetField) -> Digest:
    try:
        return parse_digest(field.value)
    except InvalidDigest as error:
        raise InvalidJobInput(f"{field.path}: {error}") from error


def _clear_target(path: Path) -> None:
    """Create the folder, and remove a partial file of an interrupted fetch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


FETCH_PROGRESS_DELAY_S = 1.0
FETCH_MESSAGE_LIMIT = 100  # they precede the first byte of output, so their offsets are below 0
FETCHING, STARTING = "fetching input", "starting"


class FetchProgress:
    """Publishes that the inputs of one attempt are being fetched, and what delays them.

    A short fetch is not published: most inputs are here before anybody could read about it.
    """

    def __init__(self, context: RunnerContext, job: Job) -> None:
        self._context = context
        self._job = job
        self._reason = ""
        self._changes = Notifier()
        self._next_change = self._changes.next_notification()
        self._published = ""
        self._offset = -FETCH_MESSAGE_LIMIT

    def set_reason(self, reason: str) -> None:
        """Set why the inputs cannot be fetched now. Called at every retry."""
        self._reason = reason
        self._changes.notify()

    async def run(self) -> None:
        """Publish for as long as the fetch takes; the caller cancels this."""
        with anyio.move_on_after(FETCH_PROGRESS_DELAY_S):
            await self._next_change.wait()
        while True:
            self._next_change = self._changes.next_notification()
            await self._publish(f"{FETCHING}: {self._reason}" if self._reason else FETCHING)
            await self._next_change.wait()

    async def finish(self) -> None:
        """Publish that the inputs are here, if a fetch was published."""
        if self._published:
            await self._publish(STARTING)

    async def _publish(self, stage: str) -> None:
        """Publish the stage. A broker that is away is not waited for: the stage only informs people."""
        if stage == self._published or self._offset >= 0:
            return
        position = FeedPosition(self._job.round, self._job.attempt, self._offset)
        message = ProgressMessage(position, self._context.now(), 0.0, stage[:WORD_LIMIT_CHARS])
        try:
            await self._context.bus.feed.publish(self._job.key, message)
        except BusError as error:
            self._context.log_unavailable("publish_fetch_progress", error)
        else:
            self._published = stage
            self._offset += 1


OUTPUT_FILE_LIMIT = 1000  # more do not fit into a record


class OutputRefused(Exception):
    """The outputs cannot be taken; `code` is output_invalid, output_too_large or disk_exceeded."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class CollectedOutput(Struct, frozen=True):
    """The outputs: the object in output.json, if there is one, and the paths of the other files by name."""

    data: dict[str, Any]
    files: tuple[Path, ...]


_decode_output = msgspec.json.Decoder(dict[str, Any]).decode


class OutputPresence(NamedTuple):
    """Whether `out` contains anything finished, and whether any of it is a file to upload."""

    has_output: bool
    has_files: bool


def find_output(out: Path) -> OutputPresence:
    """Return what `out` contains. Both are true for a non-folder too: `collect_outputs` refuses that."""
    try:
        names = set(filter(_is_finished, os.listdir(out)))  # noqa: PTH208 - returns names
    except OSError:
        exists = os.path.lexists(out)
        return OutputPresence(exists, exists)
    return OutputPresence(bool(names), bool(names - {OUTPUT_FILE}))


def collect_outputs(out: Path, limit_bytes: int | None = None) -> CollectedOutput:
    """Collect everything in `out`. Raises OutputRefused.

    Sizes are compared with `limit_bytes` before anything is read. Holes count too: the asset store would keep them as
    zeros.
    """
    try:
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OutputRefused("output_invalid", f"out/ is not a folder any more: {error.strerror}") from error
    try:
        names = sorted(filter(_is_finished, os.listdir(folder)))  # noqa: PTH208 - by descriptor
        if len(names) > OUTPUT_FILE_LIMIT:
            raise OutputRefused("output_too_large", f"{len(names)} files in out/, the limit is {OUTPUT_FILE_LIMIT}")
        size = sum(_check_file(folder, name) for name in names)
        if limit_bytes is not None and size > limit_bytes:
            problem = (
                f"the outputs are {to_mib(size)} MiB, holes included, "
                f"and the job may use {to_mib(limit_bytes)} of disk: {DISK_REMEDY}"
            )
            raise OutputRefused("disk_exceeded", problem)
        files = tuple(out / name for name in names if name != OUTPUT_FILE)
        return CollectedOutput(_read_output_file(folder) if OUTPUT_FILE in names else {}, files)
    finally:
        os.close(folder)


def _is_finished(name: str) -> bool:
    return not name.startswith(PARTIAL_FILE_PREFIX)


def _check_file(folder: int, name: str) -> int:
    """Return the file's apparent size in bytes. Raises OutputRefused if the file cannot be taken."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISREG(found.st_mode):
        raise OutputRefused("output_invalid", f"out/{name!r} is not a regular file: write plain files into out/")
    if safe_name(name) != name:
        raise OutputRefused("output_invalid", f"out/{name!r} is not a safe name: use letters, digits, dots and dashes")
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder))
    except OSError as error:
        raise OutputRefused("output_invalid", f"out/{name!r} cannot be read: {error.strerror}") from error
    return found.st_size


def _read_output_file(folder: int) -> dict[str, Any]:
    file = os.open(OUTPUT_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(file, "rb") as opened:
        text = opened.read(OUTPUT_DATA_LIMIT_BYTES + 1)
    if len(text) > OUTPUT_DATA_LIMIT_BYTES:
        raise OutputRefused(
            "output_too_large", f"output.json is over {OUTPUT_DATA_LIMIT_BYTES} bytes: put it into a file"
        )
    try:
        answer = _decode_output(text)
    except DECODE_ERRORS as error:
        raise OutputRefused("output_invalid", f"output.json is not a JSON object: {error}") from error
    if is_too_deep(answer):
        raise OutputRefused(
            "output_invalid", f"output.json is nested deeper than {NESTING_LIMIT} levels: put it into a file"
        )
    return answer
