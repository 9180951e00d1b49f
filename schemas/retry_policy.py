"""Every failure code of a job: who is to blame, and whether the job is tried again.

`outcome_after_failure` turns a failed attempt into the event to record. Nothing else decides between another attempt
and the end. The runner calls it for its own attempts, the edge for those of a host that is gone.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from schemas.backoff import Backoff
from schemas.events import AttemptReleased, Failed
from schemas.job import AttemptUsage, Job, JobFailure, JobMetric
from schemas.lifecycle import RELEASES_EXHAUSTED_CODES
from schemas.status import Blame


class RetryRule(StrEnum):
    """The cost of an attempt that failed in this way."""

    NEVER = "never"
    CHARGED = "counted"  # costs an attempt
    ONCE = "once"  # costs an attempt; the job is tried again only if no earlier attempt was charged
    FREE = "free"  # costs nothing, up to the two limits below


class FailureClass(NamedTuple):
    """One row of FAILURES: whose fault a failure is, and whether the job is tried again."""

    blame: Blame
    retry: RetryRule


GPU_FREE_RELEASE_LIMIT = 3  # free releases of a job for GPU faults, then gpu_fault_repeated
FREE_RELEASE_LIMIT = 10  # free releases of a job in all, then host_fault_repeated
DRAINED_CODE = "drained"
HOST_LOST_CODE = "host_lost"
MODULE_MISSING_CODE = "module_missing"
SECRET_MISSING_CODE = "secret_missing"  # noqa: S105 - the name of a failure
RETRY_BACKOFF = Backoff(first_s=2.0, limit_s=300.0)
JITTERED_BACKOFF_LIMIT = timedelta(seconds=2 * RETRY_BACKOFF.limit_s)

FAILURES: Mapping[str, FailureClass] = {
    "bad_job": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "bad_input": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "unreadable_video": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "unreadable_audio": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "no_face": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "multiple_faces": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "input_too_large": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "input_fetch_failed": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "asset_gone": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    SECRET_MISSING_CODE: FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "disk_exceeded": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "internal": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_missing": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_invalid": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "model_load_failed": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "stalled": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    MODULE_MISSING_CODE: FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "output_too_large": FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "out_of_memory": FailureClass(Blame.IMAGE, RetryRule.ONCE),
    "execution_timeout": FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "gpu_lost": FailureClass(Blame.GPU, RetryRule.FREE),
    "gpu_unhealthy": FailureClass(Blame.GPU, RetryRule.FREE),
    "gpu_unsupported": FailureClass(Blame.GPU, RetryRule.FREE),
    "cuda_oom": FailureClass(Blame.GPU, RetryRule.CHARGED),
    "gpu_fault_repeated": FailureClass(Blame.GPU, RetryRule.NEVER),
    HOST_LOST_CODE: FailureClass(Blame.HOST, RetryRule.FREE),
    "engine_error": FailureClass(Blame.HOST, RetryRule.FREE),
    "image_missing": FailureClass(Blame.HOST, RetryRule.FREE),
    "disk_full": FailureClass(Blame.HOST, RetryRule.FREE),
    "host_fault_repeated": FailureClass(Blame.HOST, RetryRule.NEVER),
    DRAINED_CODE: FailureClass(Blame.HOST, RetryRule.FREE),
}


# Failures that end the job at once, although a `retry` by its owner may succeed: the machines may be well again, or the
# owner has uploaded the missing file or set the secret.
_RETRYABLE_BY_OWNER = RELEASES_EXHAUSTED_CODES | {"asset_gone", "input_fetch_failed", SECRET_MISSING_CODE}


def classify_failure(code: str, by_exit_code: FailureClass) -> FailureClass:
    """Return the row of `code`; an image's own code has no row and takes the class of the exit code."""
    return FAILURES.get(code, by_exit_code)


def is_retryable(code: str, row: FailureClass) -> bool:
    """Return whether the same request may succeed when its owner asks for a `retry`.

    False: the request would fail the same way, so change the input or the policy and submit again.
    """
    return row.retry is not RetryRule.NEVER or code in _RETRYABLE_BY_OWNER


def make_job_failure(
    code: str, message: str, row: FailureClass | None = None, log_tail: tuple[str, ...] = ()
) -> JobFailure:
    """Make the `error` of a job that ends with `code`. `row` classifies an image's own code, which has no row."""
    row = row or FAILURES[code]
    return JobFailure(code, message, row.blame, is_retryable(code, row), log_tail)


def retry_backoff(tries: int, jitter: float) -> timedelta:
    """Return how long a released job waits after `tries` earlier releases; `jitter` in [0, 1) adds up to that again."""
    return timedelta(seconds=RETRY_BACKOFF.delay_s(tries, jitter))


def _code_if_releases_exhausted(job: Job, code: str, row: FailureClass) -> str | None:
    """Return the code that ends the job when its free releases are used up; None while one is left."""
    if sum(job.free_releases.values()) >= FREE_RELEASE_LIMIT:
        return "host_fault_repeated"
    gpu_releases = sum(
        n for name, n in job.free_releases.items() if name in FAILURES and FAILURES[name].blame is Blame.GPU
    )
    if row.blame is Blame.GPU and gpu_releases >= GPU_FREE_RELEASE_LIMIT:
        return "gpu_fault_repeated"
    return None


def outcome_after_failure(  # noqa: PLR0913 - each is one fact about the attempt that failed
    job: Job,
    code: str,
    message: str,
    row: FailureClass,
    *,
    at: datetime,
    jitter: float,
    usage: AttemptUsage | None = None,
    log: str | None = None,
    log_tail: tuple[str, ...] = (),
    metrics: tuple[JobMetric, ...] = (),
) -> AttemptReleased | Failed:
    """Return the event to record after an attempt of `job` failed with `code`, classified as `row`.

    `jitter` in [0, 1) spreads the retries. `log_tail`: the last lines of stderr. After a drain and a lost host the job
    waits no time, because nothing is wrong with the job.
    """
    final = Failed(make_job_failure(code, message, row, log_tail), usage=usage, log=log, metrics=metrics)
    if row.retry is RetryRule.NEVER:
        return final
    if row.retry is RetryRule.FREE:
        final_code = _code_if_releases_exhausted(job, code, row)
        if final_code is not None:
            error = make_job_failure(final_code, f"{code}: {message}", log_tail=log_tail)
            return Failed(error, usage=usage, log=log, metrics=metrics)
        starts_at_once = code in {DRAINED_CODE, HOST_LOST_CODE}
        not_before = None if starts_at_once else at + retry_backoff(sum(job.free_releases.values()), jitter)
        return AttemptReleased(code, message, charged=False, not_before=not_before)
    allowed = min(2, job.policy.max_attempts) if row.retry is RetryRule.ONCE else job.policy.max_attempts
    if job.charged_attempts + 1 >= allowed:
        return final
    return AttemptReleased(code, message, charged=True, not_before=at + retry_backoff(job.charged_attempts, jitter))
