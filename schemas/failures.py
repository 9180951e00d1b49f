"""Every way a job can fail: whose fault it is and whether it is tried again (PROTOCOLS 1, "Failure codes").

`settle` turns a failed attempt into the event to record. It is the only place that decides between another attempt
and the end, and both the runner (its own attempts) and the edge (attempts of a gone host) ask it.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from schemas.events import Failed, Released
from schemas.job import Failure, Job, Usage
from schemas.words import Blame


class Retry(StrEnum):
    """What an attempt that failed this way costs."""

    NEVER = "never"
    COUNTED = "counted"  # costs an attempt
    ONCE = "once"  # one retry, however many attempts are left
    FREE = "free"  # costs nothing, but see FREE_OF_GPU and FREE_IN_ALL


class Class(NamedTuple):
    """One row of the table."""

    blame: Blame
    retry: Retry


FREE_OF_GPU = 3  # free releases a job for GPU faults, then gpu_fault_repeated
FREE_IN_ALL = 10  # free releases a job of every kind, then host_fault_repeated
DRAINED = "drained"
BACKOFF_MOST_S = 300.0  # before the jitter
LONGEST_BACKOFF = timedelta(seconds=2 * BACKOFF_MOST_S)

FAILURES: Mapping[str, Class] = {
    "bad_job": Class(Blame.CLIENT, Retry.NEVER),
    "bad_input": Class(Blame.CLIENT, Retry.NEVER),
    "unreadable_video": Class(Blame.CLIENT, Retry.NEVER),
    "unreadable_audio": Class(Blame.CLIENT, Retry.NEVER),
    "no_face": Class(Blame.CLIENT, Retry.NEVER),
    "multiple_faces": Class(Blame.CLIENT, Retry.NEVER),
    "input_too_large": Class(Blame.CLIENT, Retry.NEVER),
    "input_fetch_failed": Class(Blame.CLIENT, Retry.NEVER),
    "asset_gone": Class(Blame.CLIENT, Retry.NEVER),
    "disk_exceeded": Class(Blame.CLIENT, Retry.NEVER),
    "internal": Class(Blame.IMAGE, Retry.COUNTED),
    "output_missing": Class(Blame.IMAGE, Retry.COUNTED),
    "output_invalid": Class(Blame.IMAGE, Retry.COUNTED),
    "model_load_failed": Class(Blame.IMAGE, Retry.COUNTED),
    "stalled": Class(Blame.IMAGE, Retry.COUNTED),
    "output_too_large": Class(Blame.IMAGE, Retry.NEVER),
    "out_of_memory": Class(Blame.IMAGE, Retry.ONCE),
    "execution_timeout": Class(Blame.IMAGE, Retry.NEVER),
    "gpu_lost": Class(Blame.GPU, Retry.FREE),
    "gpu_unhealthy": Class(Blame.GPU, Retry.FREE),
    "gpu_unsupported": Class(Blame.GPU, Retry.FREE),
    "cuda_oom": Class(Blame.GPU, Retry.COUNTED),
    "gpu_fault_repeated": Class(Blame.GPU, Retry.NEVER),
    "host_lost": Class(Blame.HOST, Retry.FREE),
    "engine_error": Class(Blame.HOST, Retry.FREE),
    "image_missing": Class(Blame.HOST, Retry.FREE),
    "disk_full": Class(Blame.HOST, Retry.FREE),
    "host_fault_repeated": Class(Blame.HOST, Retry.NEVER),
    DRAINED: Class(Blame.HOST, Retry.FREE),
}


def classify(code: str, otherwise: Class) -> Class:
    """The row of `code`; an image's own code has none and takes `otherwise` (from its exit code)."""
    return FAILURES.get(code, otherwise)


def backoff(tries: int, jitter: float) -> timedelta:
    """How long a released job waits: 2 s x 2^tries, at most 5 minutes, x (1 + jitter); jitter in [0, 1)."""
    return timedelta(seconds=min(2.0 * 2 ** min(tries, 20), BACKOFF_MOST_S) * (1 + jitter))


def _free(job: Job, code: str, row: Class) -> str | None:
    """The code that ends the job when its free releases are used up, or None while one is left."""
    if sum(job.releases.values()) >= FREE_IN_ALL:
        return "host_fault_repeated"
    of_gpu = sum(n for name, n in job.releases.items() if name in FAILURES and FAILURES[name].blame is Blame.GPU)
    if row.blame is Blame.GPU and of_gpu >= FREE_OF_GPU:
        return "gpu_fault_repeated"
    return None


def settle(  # noqa: PLR0913 - each is one fact about the attempt that failed
    job: Job,
    code: str,
    message: str,
    row: Class,
    *,
    at: datetime,
    jitter: float,
    usage: Usage | None = None,
    log: str | None = None,
    log_tail: tuple[str, ...] = (),
) -> Released | Failed:
    """What to record when an attempt of `job` failed with `code`, classified as `row`; `log_tail`: its last words.

    `jitter` in [0, 1) spreads the retries. A drain and a lost host wait no time: nothing is wrong with the job.
    """
    final = Failed(Failure(code, message, row.blame, retryable=False, log_tail=log_tail), usage=usage, log=log)
    if row.retry is Retry.NEVER:
        return final
    if row.retry is Retry.FREE:
        ended = _free(job, code, row)
        if ended is not None:
            blame = FAILURES[ended].blame
            error = Failure(ended, f"{code}: {message}", blame, retryable=False, log_tail=log_tail)
            return Failed(error, usage=usage, log=log)
        at_once = code in {DRAINED, "host_lost"}
        wait = None if at_once else at + backoff(sum(job.releases.values()), jitter)
        return Released(code, message, charged=False, not_before=wait)
    allowed = min(2, job.policy.max_attempts) if row.retry is Retry.ONCE else job.policy.max_attempts
    if job.charged + 1 >= allowed:
        return final
    return Released(code, message, charged=True, not_before=at + backoff(job.charged, jitter))
