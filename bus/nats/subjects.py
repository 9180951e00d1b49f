"""Which subject means what: the names that the broker, its users' rights and both buses share."""

from bus.interface import Lane
from schemas.feed import FeedMessage, LogMessage, ProgressMessage
from schemas.ids import JobKey
from schemas.job import Pointer
from schemas.status import Priority
from schemas.usage import JobUsage, PowerUsage, UsageRow


def record_subject(key: JobKey) -> str:
    """Where the record of `key` lives in STATE."""
    return f"$KV.STATE.{key.owner}.{key.id}"


def parse_record_key(subject: str) -> JobKey:
    """The inverse of `record`."""
    owner, job_id = subject.split(".")[-2:]
    return JobKey(owner, job_id)


def row_subject(bucket: str, key: str) -> str:
    """Where a row of a bucket lives."""
    return f"$KV.{bucket}.{key}"


def parse_row_key(bucket: str, subject: str) -> str:
    """The inverse of `row`."""
    return subject.removeprefix(f"$KV.{bucket}.")


def pointer_subject(waiting: Pointer) -> str:
    """The message of that round in JOBS; it says all that the message has to say."""
    return f"job.{waiting.pool}.{waiting.priority}.{waiting.owner}.{waiting.id}.{waiting.round}"


def parse_pointer_subject(subject: str) -> Pointer | None:
    """The inverse of `pointer`; None for what a stranger published under `job.`."""
    tokens = subject.split(".")
    if len(tokens) != 6 or tokens[2] not in set(Priority) or not tokens[5].isdecimal():
        return None
    return Pointer(tokens[1], Priority(tokens[2]), tokens[3], tokens[4], int(tokens[5]))


def subject_matches(pattern: str, subject: str) -> bool:
    """Whether `subject` is one of those that `pattern` names: `*` is any one token, a last `>` one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, given = wanted[:-1], given[: len(wanted) - 1] if len(given) >= len(wanted) else []
    return len(wanted) == len(given) and all(one in ("*", token) for one, token in zip(wanted, given, strict=True))


def lane_consumer(pool: str, priority: Priority) -> str:
    """The durable consumer of a pool and priority. No priority holds a dash, so no two lanes share a name."""
    return f"{pool}-{priority}"


def feed_subject(key: JobKey, said: FeedMessage) -> str:
    """Where a note of `key` goes in FEED."""
    kind = "progress" if isinstance(said, ProgressMessage) else "log"
    return f"feed.{key.owner}.{key.id}.{kind}"


def feed_message_id(key: JobKey, said: FeedMessage) -> str:
    """The Msg-Id of a note: the same place and kind twice is once, over an adoption too."""
    kind = type(said).__struct_config__.tag
    stream = said.stream if isinstance(said, LogMessage) else ""
    place = said.position
    return f"{key.owner}.{key.id}.{kind}.{stream}.{place.round}.{place.attempt}.{place.offset}"


def parse_feed_key(subject: str) -> JobKey:
    """Whose a message of FEED is."""
    _, owner, job_id, _ = subject.split(".")
    return JobKey(owner, job_id)


def is_state_subject(subject: str) -> bool:
    """Whether a message of FEED is a state that was sourced from STATE."""
    return subject.endswith(".state")


def delivery_subject(key: JobKey, revision: int, replay: int) -> str:
    """A webhook's letter in DELIVERIES, and its Msg-Id."""
    return f"delivery.{key.owner}.{key.id}.{revision}.{replay}"


def parse_delivery_subject(subject: str) -> tuple[int, int] | None:
    """Revision and replay of a letter; None for what a stranger published under `delivery.`."""
    tokens = subject.split(".")
    if len(tokens) != 5 or not all(token.isdecimal() for token in tokens[3:]):
        return None
    return int(tokens[3]), int(tokens[4])


def delivery_subjects(owner: str, job_id: str | None = None) -> str:
    """All letters of a job, or of an owner."""
    return f"delivery.{owner}.{job_id or '*'}.>"


def wake_subject(pool: str, priority: Priority) -> str:
    """Core subject: something was published to the lane."""
    return f"wake.{lane_consumer(pool, priority)}"


def parse_wake_subject(subject: str) -> Lane | None:
    """The inverse of `wake`; None for what a stranger said, or an edge that named the pool alone."""
    pool, _, priority = subject.removeprefix("wake.").rpartition("-")
    return Lane(pool, Priority(priority)) if priority in set(Priority) else None


def usage_subject(row: UsageRow) -> str:
    """The one subject of a row of USAGE. The revision tells a job from an earlier one that was deleted."""
    match row:
        case JobUsage():
            return f"usage.job.{row.owner}.{row.id}.{row.revision}"
        case PowerUsage():
            return f"usage.power.{row.host}.{int(row.since.timestamp() * 1000)}"


JOB_USAGE_SUBJECTS = "usage.job.>"
POWER_USAGE_SUBJECTS = "usage.power.>"


def owner_usage_subjects(owner: str) -> str:
    """The rows of an owner's jobs."""
    return f"usage.job.{owner}.>"


def nudge_subject(host: str) -> str:
    """Core subject: the host should look at a record now."""
    return f"ctl.{host}"
