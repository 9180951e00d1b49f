"""Every way a job can fail: whose fault it is and whether it is tried again (PROTOCOLS 1, "Failure codes").

`settle` turns a failed attempt into the event to record. It is the only place that decides between another attempt
and the end, and both the runner (its own attempts) and the edge (attempts of a gone host) ask it.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from schemas.events import AttemptReleased, Failed
from schemas.job import AttemptUsage, Job, JobFailure
from schemas.status import Blame


class RetryRule(StrEnum):
    """What an attempt that failed this way costs."""

    NEVER = "never"
    CHARGED = "counted"  # costs an attempt
    ONCE = "once"  # one retry, however many attempts are left
    FREE = "free"  # costs nothing, but see FREE_OF_GPU and FREE_IN_ALL


class FailureClass(NamedTuple):
    """One row of the table."""

    blame: Blame
    retry: RetryRule


GPU_FREE_RELEASE_LIMIT = 3  # free releases a job for GPU faults, then gpu_fault_repeated
FREE_RELEASE_LIMIT = 10  # free releases a job of every kind, then host_fault_repeated
DRAINED_CODE = "drained"
RETRY_BACKOFF_LIMIT_S = 300.0  # before the jitter
JITTERED_BACKOFF_LIMIT = timedelta(seconds=2 * RETRY_BACKOFF_LIMIT_S)

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
    "disk_exceeded": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "internal": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_missing": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_invalid": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "model_load_failed": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "stalled": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_too_large": FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "out_of_memory": FailureClass(Blame.IMAGE, RetryRule.ONCE),
    "execution_timeout": FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "gpu_lost": FailureClass(Blame.GPU, RetryRule.FREE),
    "gpu_unhealthy": FailureClass(Blame.GPU, RetryRule.FREE),
    "gpu_unsupported": FailureClass(Blame.GPU, RetryRule.FREE),
    "cuda_oom": FailureClass(Blame.GPU, RetryRule.CHARGED),
    "gpu_fault_repeated": FailureClass(Blame.GPU, RetryRule.NEVER),
    "host_lost": FailureClass(Blame.HOST, RetryRule.FREE),
    "engine_error": FailureClass(Blame.HOST, RetryRule.FREE),
    "image_missing": FailureClass(Blame.HOST, RetryRule.FREE),
    "disk_full": FailureClass(Blame.HOST, RetryRule.FREE),
    "host_fault_repeated": FailureClass(Blame.HOST, RetryRule.NEVER),
    DRAINED_CODE: FailureClass(Blame.HOST, RetryRule.FREE),
}


def classify_failure(code: str, otherwise: FailureClass) -> FailureClass:
    """The row of `code`; an image's own code has none and takes `otherwise` (from its exit code)."""
    return FAILURES.get(code, otherwise)


def retry_backoff(tries: int, jitter: float) -> timedelta:
    """How long a released job waits: 2 s x 2^tries, at most 5 minutes, x (1 + jitter); jitter in [0, 1)."""
    return timedelta(seconds=min(2.0 * 2 ** min(tries, 20), RETRY_BACKOFF_LIMIT_S) * (1 + jitter))


def _code_if_releases_exhausted(job: Job, code: str, row: FailureClass) -> str | None:
    """The code that ends the job when its free releases are used up, or None while one is left."""
    if sum(job.free_releases.values()) >= FREE_RELEASE_LIMIT:
        return "host_fault_repeated"
    of_gpu = sum(n for name, n in job.free_releases.items() if name in FAILURES and FAILURES[name].blame is Blame.GPU)
    if row.blame is Blame.GPU and of_gpu >= GPU_FREE_RELEASE_LIMIT:
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
) -> AttemptReleased | Failed:
    """What to record when an attempt of `job` failed with `code`, classified as `row`; `log_tail`: its last words.

    `jitter` in [0, 1) spreads the retries. A drain and a lost host wait no time: nothing is wrong with the job.
    """
    final = Failed(JobFailure(code, message, row.blame, retryable=False, log_tail=log_tail), usage=usage, log=log)
    if row.retry is RetryRule.NEVER:
        return final
    if row.retry is RetryRule.FREE:
        ended = _code_if_releases_exhausted(job, code, row)
        if ended is not None:
            blame = FAILURES[ended].blame
            error = JobFailure(ended, f"{code}: {message}", blame, retryable=False, log_tail=log_tail)
            return Failed(error, usage=usage, log=log)
        at_once = code in {DRAINED_CODE, "host_lost"}
        wait = None if at_once else at + retry_backoff(sum(job.free_releases.values()), jitter)
        return AttemptReleased(code, message, charged=False, not_before=wait)
    allowed = min(2, job.policy.max_attempts) if row.retry is RetryRule.ONCE else job.policy.max_attempts
    if job.charged_attempts + 1 >= allowed:
        return final
    return AttemptReleased(code, message, charged=True, not_before=at + retry_backoff(job.charged_attempts, jitter))
