"""Why a waiting job waits. When several are true, the first of this list is told (what the host says comes first)."""

from enum import StrEnum


class WaitReason(StrEnum):
    """The `reason` of a waiting Job, most telling first."""

    AWAITING_INPUT = "awaiting_input"
    FETCHING_INPUT = "fetching_input"
    NOT_BEFORE = "not_before"
    BACKOFF = "backoff"
    NO_HOST = "no_host"
    GPU_NONE = "gpu_none"
    HOST_FAULT = "host_fault"
    HOST_BLOCKED = "host_blocked"
    HOST_BOOTING = "host_booting"
    HOST_WAKING = "host_waking"
    HOST_OFF = "host_off"
    HOST_OFF_UNSWITCHED = "host_off_unswitched"
    PAUSED = "paused"
    ENGINE_AWAY = "engine_away"
    IMAGE_MISSING = "image_missing"
    GPU_UNHEALTHY = "gpu_unhealthy"
    GPU_BUSY_OWNER = "gpu_busy_owner"
    VRAM_SHORT = "vram_short"
    DISK_SHORT = "disk_short"
    QUOTA = "quota"
    BEHIND = "behind"


WAIT_REASON_ORDER = tuple(WaitReason)


def most_relevant_reason(true: set[WaitReason]) -> WaitReason | None:
    """The reason to tell of those that are true."""
    return next((reason for reason in WAIT_REASON_ORDER if reason in true), None)


class Status(StrEnum):
    """Where a job stands. Who moves it from one to the next is in `lifecycle.TRANSITIONS`."""

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
    """Which queue of the pool a job waits in; the runner sweeps them in this order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Blame(StrEnum):
    """Whose fault a failure is: it decides what the user is told and what is retried."""

    CLIENT = "client"
    IMAGE = "image"
    GPU = "gpu"
    HOST = "host"
