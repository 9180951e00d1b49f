"""The job's folder before the start: inputs under plain names, job.json, and the progress of the fetch."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from bus.interface import BusError
from bus.notifier import Notifier
from runner.assets.port import AssetTransfer
from runner.context import RunnerContext
from schemas.asset import AssetField, Digest, InvalidDigest, asset_fields, parse_digest, safe_name
from schemas.container_protocol import JOB_FILE, WORD_LIMIT_CHARS, JobFile, JobTimeouts
from schemas.endpoint import Endpoint
from schemas.feed import FeedPosition, ProgressMessage
from schemas.job import Job

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
