"""The thresholds of the scene, for alerts and for notifications: what an operator waits for takes seconds.

Limits that are not times are those of the installation, but for the length of a queue.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from schemas.installation import THRESHOLDS, Condition, Threshold

SHORTER: Mapping[Condition, Mapping[str, Any]] = {
    Condition.QUEUE_GROWING: {"limit": 3, "window_s": 2},
    Condition.WAIT_TOO_LONG: {"age_s": 2},
    Condition.WAKE_FAILED: {"window_s": 12},
    Condition.HOST_IDLE: {"age_s": 1, "window_s": 60},
    Condition.WEBHOOKS_DELAYED: {"age_s": 2},
    Condition.FAILURE_RATE: {"window_s": 10},
    Condition.BACKUP_OLD: {"window_s": 1},
}
QUICK_THRESHOLDS: Mapping[Condition, Threshold] = {
    condition: replace(usual, for_s=0.0, **SHORTER.get(condition, {})) for condition, usual in THRESHOLDS.items()
}
