"""Why a waiting job waits. When several are true, the first of this list is told (what the host says comes first)."""

from enum import StrEnum


class Reason(StrEnum):
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


ORDER = tuple(Reason)


def foremost(true: set[Reason]) -> Reason | None:
    """The reason to tell of those that are true."""
    return next((reason for reason in ORDER if reason in true), None)
