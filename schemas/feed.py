"""Messages of a running job to its followers, under `feed.<owner>.<job_id>.{progress,log}`.

Each names its attempt and the offset of the last output byte that it covers. So a runner that adopts the job continues
after the last one published, and a client sees rising offsets without repeats.
"""

from typing import Literal

from msgspec import Struct, field

from schemas.job import Moment


class FeedPosition(Struct, frozen=True):
    """A position in the output of a job: the container (round, attempt) and the bytes before it."""

    round: int
    attempt: int
    offset: int


class ProgressMessage(Struct, frozen=True, tag_field="type", tag="progress"):
    """The progress of the job; `fraction` in [0, 1]. At most 4 a second for each job."""

    position: FeedPosition = field(name="place")
    at: Moment
    fraction: float
    stage: str | None = None
    done: int | None = None
    total: int | None = None


class LogMessage(Struct, frozen=True, tag_field="type", tag="log"):
    """A piece of the job's output: at most 16 KiB, or 250 ms of it."""

    position: FeedPosition = field(name="place")
    at: Moment
    stream: Literal["stdout", "stderr"]
    text: str


class LogEndMessage(Struct, frozen=True, tag_field="type", tag="log_end"):
    """The last message of an attempt's output."""

    position: FeedPosition = field(name="place")
    at: Moment


FeedMessage = ProgressMessage | LogMessage | LogEndMessage

PROGRESS_LIMIT_PER_S = 4
LOG_INTERVAL_S = 0.25
LOG_MESSAGE_LIMIT_BYTES = 16 * 1024
JOB_LOG_LIMIT_BYTES = 4 * 1024 * 1024  # of one job's log that is published; the stored log has the rest
