"""A job's folder before its container starts: the inputs under plain names, and job.json that tells them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from bus.interface import BusError
from runner.assets.port import AssetTransfer
from runner.context import RunnerContext
from schemas.asset import AssetField, Digest, InvalidDigest, asset_fields, parse_digest, safe_name
from schemas.container_protocol import JOB_FILE, WORD_LIMIT_CHARS, JobFile, JobTimeouts
from schemas.endpoint import Endpoint
from schemas.feed import FeedPosition, ProgressMessage
from schemas.job import Job

INPUT_LENGTH_LIMIT_S = 30 * 86400.0  # of input; what a client names may be any number


class InvalidJobInput(Exception):
    """The input cannot be staged, whoever tries: the message says why."""


def job_timeouts(job: Job, endpoint: Endpoint) -> JobTimeouts:
    """Seconds: what the policy says, else base_s + per_input_s x the seconds of input that the job names."""
    limits = endpoint.timeouts
    named = job.input.get(endpoint.input_seconds) if endpoint.input_seconds else None
    length = min(max(0.0, named), INPUT_LENGTH_LIMIT_S) if isinstance(named, int | float) else 0.0
    by_input = limits.base_s + limits.per_input_s * length
    return JobTimeouts(job.policy.execution_timeout_s or by_input, job.policy.stall_timeout_s)


def assign_file_names(fields: list[AssetField], suffixes: Mapping[str, str]) -> Mapping[str, str]:
    """The file name of every asset field, by the field's path: `video.mp4` for the field `video` of an asset with the
    suffix `.mp4` (`suffixes` by the field's value). The same file in two fields has two names."""
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


def substitute_file_names(given: Any, names: Mapping[str, str], path: str = "$") -> Any:
    """`given` with the file's name wherever a field of `names` stands."""
    if isinstance(given, Mapping):
        return {key: substitute_file_names(value, names, f"{path}.{key}") for key, value in given.items()}
    if isinstance(given, list):
        return [substitute_file_names(value, names, f"{path}[{at}]") for at, value in enumerate(given)]
    return names.get(path, given) if isinstance(given, str) else given


async def stage_inputs(job: Job, endpoint: Endpoint, job_dir: Path, supplies: AssetTransfer) -> Mapping[str, str]:
    """Fill in/; the files' names by field, as `named`. Raises BadInput, AssetGone, EdgeAway, OSError (disk)."""
    fields = asset_fields(endpoint.input, job.input)
    digests = {field.value: _parse_digest(field) for field in fields}
    names = assign_file_names(
        fields, {value: await supplies.filename_suffix(job.owner, digest) for value, digest in digests.items()}
    )
    for field in fields:
        path = job_dir / "in" / names[field.path]
        await anyio.to_thread.run_sync(_clear_target, path)
        await supplies.stage(job.owner, digests[field.value], path)
    return names


def write_job_file(job: Job, names: Mapping[str, str], limits: JobTimeouts, job_dir: Path) -> None:
    """Write job.json, in which every asset field has its file's name. Blocking; raises OSError.

    Made beside the folder and moved in: a warm container may write there, and must not point us somewhere else.
    """
    told = JobFile(
        id=job.id,
        owner=job.owner,
        endpoint=job.endpoint,
        round=job.round,
        attempt=job.attempt,
        input=substitute_file_names(job.input, names),
        timeouts=limits,
    )
    job_dir.mkdir(parents=True, exist_ok=True)
    new = job_dir.with_name(JOB_FILE)
    new.write_bytes(msgspec.json.encode(told))
    new.chmod(0o644)
    new.replace(job_dir / JOB_FILE)


def _parse_digest(field: AssetField) -> Digest:
    try:
        return parse_digest(field.value)
    except InvalidDigest as error:
        raise InvalidJobInput(f"{field.path}: {error}") from error


def _clear_target(path: Path) -> None:
    """Make the folder, and take away what a try left that the edge cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


# MERGED runner/prelude.py: What a job's followers are told before its program says anything: that its inputs are
# fetched, and what keeps them. / Only a fetch that takes a while is told: most inputs are here before anybody could
# read of it.


FETCH_PROGRESS_DELAY_S = 1.0
FETCH_MESSAGE_LIMIT = 100  # of these notes; they come before the first byte of output, so their offsets are below 0
FETCHING, STARTING = "fetching input", "starting"


class FetchProgress:
    """One attempt's. `why` is called whenever the fetch fails and is tried again."""

    def __init__(self, life: RunnerContext, job: Job) -> None:
        self._context = life
        self._job = job
        self._reason = ""
        self._changed = anyio.Event()
        self._published = ""
        self._offset = -FETCH_MESSAGE_LIMIT

    def set_reason(self, why: str) -> None:
        """The inputs cannot be fetched now, for this reason."""
        self._reason = why
        self._changed.set()

    async def run(self) -> None:
        """Tell of the fetch for as long as it takes: the caller cancels this."""
        with anyio.move_on_after(FETCH_PROGRESS_DELAY_S):
            await self._changed.wait()
        while True:
            self._changed = anyio.Event()
            await self._publish(f"{FETCHING}: {self._reason}" if self._reason else FETCHING)
            await self._changed.wait()

    async def finish(self) -> None:
        """The inputs are here."""
        if self._published:
            await self._publish(STARTING)

    async def _publish(self, stage: str) -> None:
        """A broker that is away is not waited for: this is for people who look on."""
        if stage == self._published or self._offset >= 0:
            return
        place = FeedPosition(self._job.round, self._job.attempt, self._offset)
        note = ProgressMessage(place, self._context.now(), 0.0, stage[:WORD_LIMIT_CHARS])
        try:
            await self._context.bus.feed.publish(self._job.key, note)
        except BusError as error:
            self._context.log_unavailable("tell of the fetch", error)
        else:
            self._published = stage
            self._offset += 1
