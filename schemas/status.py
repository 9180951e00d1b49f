"""The status of a job, why it waits, its priority, and who is to blame for a failure."""

from enum import StrEnum


class WaitReason(StrEnum):
    """The `reason` of a waiting Job, most relevant first. When several are true, a client sees the first."""

    AWAITING_INPUT = "awaiting_input"
    FETCHING_INPUT = "fetching_input"
    NOT_BEFORE = "not_before"
    BACKOFF = "backoff"
    ENDPOINT_PAUSED = "endpoint_paused"
    NO_HOST = "no_host"
    GPU_NONE = "gpu_none"
    REQUIREMENT_UNMET = "requirement_unmet"
    HOST_FAULT = "host_fault"
    HOST_BLOCKED = "host_blocked"
    HOST_BOOTING = "host_booting"
    HOST_WAKING = "host_waking"
    HOST_OFF = "host_off"
    HOST_OFF_UNSWITCHED = "host_off_unswitched"
    HOST_IN_MAINTENANCE = "host_in_maintenance"
    HOST_ENDING = "host_ending"
    PAUSED = "paused"
    ENGINE_AWAY = "engine_away"
    IMAGE_MISSING = "image_missing"
    IMAGE_PULLING = "image_pulling"
    VOLUME_MISSING = "volume_missing"
    VOLUME_FILLING = "volume_filling"
    GPU_UNHEALTHY = "gpu_unhealthy"
    GPU_BUSY_OWNER = "gpu_busy_owner"
    VRAM_SHORT = "vram_short"
    DISK_SHORT = "disk_short"
    GPU_SHARE_SHORT = "gpu_share_short"
    QUOTA = "quota"
    BEHIND = "behind"


WAIT_REASON_ORDER = tuple(WaitReason)


def most_relevant_reason(reasons: set[WaitReason]) -> WaitReason | None:
    """Return the first reason in the order of WaitReason; None for an empty set."""
    return next((reason for reason in WAIT_REASON_ORDER if reason in reasons), None)


class Status(StrEnum):
    """The status of a job. `lifecycle.TRANSITIONS` says what moves it from one to the next."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


WAITING_STATUSES = frozenset({Status.SCHEDULED, Status.QUEUED})
ACTIVE_STATUSES = frozenset({Status.RUNNING, Status.CANCELLING})
FINAL_STATUSES = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Priority(StrEnum):
    """The queue of the pool in which a job waits. The runner looks into the queues in this order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Blame(StrEnum):
    """The party to blame for a failure. It decides the user's text and whether the job is tried again."""

    CLIENT = "client"
    IMAGE = "image"
    GPU = "gpu"
    HOST = "host"
