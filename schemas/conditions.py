"""The conditions for which operators get a notification, with their thresholds, and the rows of NOTICES.

`edge.notify` sends messages by this table, and deploy/alert_rules.py makes Prometheus alerts from it.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from schemas.job import Moment

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0


class Condition(StrEnum):
    """Something that is wrong. An edge cannot tell EDGE_DOWN of itself, so only Prometheus does."""

    EDGE_DOWN = "edge_down"
    BROKER_NOT_DURABLE = "broker_not_durable"
    BROKER_STORE_FULL = "broker_store_full"
    QUEUE_GROWING = "queue_growing"
    WAIT_TOO_LONG = "wait_too_long"
    HOST_FAULT = "host_fault"
    WAKE_FAILED = "wake_failed"
    GPU_UNHEALTHY = "gpu_unhealthy"
    HOST_IDLE = "host_idle"
    WEBHOOKS_DELAYED = "webhooks_delayed"
    CERTIFICATE_EXPIRING = "certificate_expiring"
    DISK_FULL = "disk_full"
    CLOCK_SKEW = "clock_skew"
    FAILURE_RATE = "failure_rate"
    BACKUP_OLD = "backup_old"


class Threshold(Struct, frozen=True, kw_only=True):
    """When a condition holds.

    `limit`: a number without a unit of time. `age_s`: an age or a remaining time. `window_s`: the time over which a
    change is measured. `for_s`: how long it must hold before it is sent. `is_critical`: jobs are refused, or the
    edge cannot power a host.
    """

    limit: float = 0.0
    age_s: float = 0.0
    window_s: float = 0.0
    for_s: float = 300.0
    is_critical: bool = False


THRESHOLDS: Mapping[Condition, Threshold] = {
    Condition.EDGE_DOWN: Threshold(for_s=120, is_critical=True),
    Condition.BROKER_NOT_DURABLE: Threshold(for_s=60, is_critical=True),
    Condition.BROKER_STORE_FULL: Threshold(limit=0.8, is_critical=True),
    Condition.QUEUE_GROWING: Threshold(limit=20, window_s=10 * _MINUTE_S, for_s=30 * _MINUTE_S),
    Condition.WAIT_TOO_LONG: Threshold(age_s=_HOUR_S, for_s=60),
    Condition.HOST_FAULT: Threshold(for_s=0, is_critical=True),
    Condition.WAKE_FAILED: Threshold(window_s=30 * _MINUTE_S, for_s=0),
    Condition.GPU_UNHEALTHY: Threshold(for_s=60),
    Condition.HOST_IDLE: Threshold(age_s=15 * _MINUTE_S, window_s=_DAY_S, for_s=60),
    Condition.WEBHOOKS_DELAYED: Threshold(age_s=_HOUR_S, for_s=60),
    Condition.CERTIFICATE_EXPIRING: Threshold(age_s=14 * _DAY_S, for_s=60),
    Condition.DISK_FULL: Threshold(limit=0.1),
    Condition.CLOCK_SKEW: Threshold(age_s=30),
    Condition.FAILURE_RATE: Threshold(limit=0.2, window_s=_HOUR_S, for_s=60),
    Condition.BACKUP_OLD: Threshold(age_s=2 * _DAY_S, window_s=2 * _DAY_S),
}
FAILED_JOBS_LIMIT = 3  # FAILURE_RATE needs more failed jobs than this


JOB_FAILED = "job_failed"  # in place of a condition


class PendingMessage(Struct, frozen=True):
    """A message that a target has not got. It is tried again from `next_at` on; None: now."""

    failures: int = 0
    next_at: Moment | None = None


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition that began, and may have ended; or a failed job, which has ended when it begins.

    `condition`: a value of `Condition`, or JOB_FAILED. `subject`: the host, endpoint or job that it
    is about; empty for the installation. `values`: the figures of its text. `pending`: by target, the message that the
    target has not got: about the begin while it holds, else about the end.
    """

    condition: str
    subject: str
    values: dict[str, str]
    began_at: Moment
    ended_at: Moment | None = None
    pending: dict[str, PendingMessage] = {}
