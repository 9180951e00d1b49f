"""A row of NOTICES: a condition or a failed job, and the targets that did not get the message yet."""

from msgspec import Struct

from schemas.job import Moment

JOB_FAILED = "job_failed"  # in place of a condition


class PendingMessage(Struct, frozen=True):
    """A message that a target has not got. It is tried again from `next_at` on; None: now."""

    failures: int = 0
    next_at: Moment | None = None


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition that began, and may have ended; or a failed job, which has ended when it begins.

    `condition`: a value of `schemas.conditions.Condition`, or JOB_FAILED. `subject`: the host, endpoint or job that it
    is about; empty for the installation. `values`: the figures of its text. `pending`: by target, the message that the
    target has not got: about the begin while it holds, else about the end.
    """

    condition: str
    subject: str
    values: dict[str, str]
    began_at: Moment
    ended_at: Moment | None = None
    pending: dict[str, PendingMessage] = {}
