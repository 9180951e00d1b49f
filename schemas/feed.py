"""What a running job tells its followers: the messages under `feed.<owner>.<job_id>.{progress,log}`.

Every one names the attempt it belongs to and the offset of the last output byte it stands for, so that a runner that
adopts the job continues behind the last one published and a client sees offsets rise, none twice.
"""

from typing import Literal

from msgspec import Struct, field

from schemas.job import Moment


class FeedPosition(Struct, frozen=True):
    """Where in the job's life: the container (round, attempt) and the bytes of output behind it."""

    round: int
    attempt: int
    offset: int


class ProgressMessage(Struct, frozen=True, tag_field="type", tag="progress"):
    """How far the job is; `fraction` in [0, 1]. At most 4 a second a job."""

    position: FeedPosition = field(name="place")
    at: Moment
    fraction: float
    stage: str | None = None
    done: int | None = None
    total: int | None = None


class LogMessage(Struct, frozen=True, tag_field="type", tag="log"):
    """A piece of the job's output, at most 16 KiB or 250 ms of it."""

    position: FeedPosition = field(name="place")
    at: Moment
    stream: Literal["stdout", "stderr"]
    text: str


class LogEndMessage(Struct, frozen=True, tag_field="type", tag="log_end"):
    """The last message of an attempt's output: nothing follows it."""

    position: FeedPosition = field(name="place")
    at: Moment


FeedMessage = ProgressMessage | LogMessage | LogEndMessage

PROGRESS_LIMIT_PER_S = 4
LOG_INTERVAL_S = 0.25
LOG_MESSAGE_LIMIT_BYTES = 16 * 1024
JOB_LOG_LIMIT_BYTES = 4 * 1024 * 1024  # of one job's log that is published; the rest is only in the kept log
