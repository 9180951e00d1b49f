"""A job's folder before its container starts: the inputs under plain names, and job.json that tells them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from runner.supplies import Supplies
from schemas.asset import AssetField, Digest, InvalidDigest, asset_fields, parse, safe_name
from schemas.container import JOB_FILE, JobFile, JobTimeouts
from schemas.endpoint import Endpoint
from schemas.job import Job

LONGEST_S = 30 * 86400.0  # of input; what a client names may be any number


class BadInput(Exception):
    """The input cannot be staged, whoever tries: the message says why."""


def timeouts(job: Job, endpoint: Endpoint) -> JobTimeouts:
    """Seconds: what the policy says, else base_s + per_input_s x the seconds of input that the job names."""
    limits = endpoint.timeouts
    named = job.input.get(endpoint.input_seconds) if endpoint.input_seconds else None
    length = min(max(0.0, named), LONGEST_S) if isinstance(named, int | float) else 0.0
    by_input = limits.base_s + limits.per_input_s * length
    return JobTimeouts(job.policy.execution_timeout_s or by_input, job.policy.stall_timeout_s)


def named(fields: list[AssetField], suffixes: Mapping[str, str]) -> Mapping[str, str]:
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


def with_names(given: Any, names: Mapping[str, str], path: str = "$") -> Any:
    """`given` with the file's name wherever a field of `names` stands."""
    if isinstance(given, Mapping):
        return {key: with_names(value, names, f"{path}.{key}") for key, value in given.items()}
    if isinstance(given, list):
        return [with_names(value, names, f"{path}[{at}]") for at, value in enumerate(given)]
    return names.get(path, given) if isinstance(given, str) else given


async def stage(job: Job, endpoint: Endpoint, job_dir: Path, supplies: Supplies) -> Mapping[str, str]:
    """Fill in/; the files' names by field, as `named`. Raises BadInput, AssetGone, EdgeAway, OSError (disk)."""
    fields = asset_fields(endpoint.input, job.input)
    digests = {field.value: _digest(field) for field in fields}
    names = named(fields, {value: await supplies.suffix(job.owner, digest) for value, digest in digests.items()})
    for field in fields:
        path = job_dir / "in" / names[field.path]
        await anyio.to_thread.run_sync(_clear, path)
        await supplies.stage(job.owner, digests[field.value], path)
    return names


def tell(job: Job, names: Mapping[str, str], limits: JobTimeouts, job_dir: Path) -> None:
    """Write job.json, in which every asset field has its file's name. Blocking; raises OSError.

    Made beside the folder and moved in: a warm container may write there, and must not point us somewhere else.
    """
    told = JobFile(
        id=job.id,
        owner=job.owner,
        endpoint=job.endpoint,
        round=job.round,
        attempt=job.attempt,
        input=with_names(job.input, names),
        timeouts=limits,
    )
    job_dir.mkdir(parents=True, exist_ok=True)
    new = job_dir.with_name(JOB_FILE)
    new.write_bytes(msgspec.json.encode(told))
    new.chmod(0o644)
    new.replace(job_dir / JOB_FILE)


def _digest(field: AssetField) -> Digest:
    try:
        return parse(field.value)
    except InvalidDigest as error:
        raise BadInput(f"{field.path}: {error}") from error


def _clear(path: Path) -> None:
    """Make the folder, and take away what a try left that the edge cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
