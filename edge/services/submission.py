"""From the body of a submit to the record: wrong types and unknown fields named, limits resolved."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from edge.services.choices import with_choices
from edge.services.inputs import Given, invalid
from schemas.endpoint import Endpoint
from schemas.errors import FieldError, Refused
from schemas.job import Job, JobKey, Policy, PolicyRequest, Submission
from schemas.words import TOKEN_PATTERN, Status, is_token

# How msgspec words its errors: "<what> - at `$.a.b`", the path left out at the top.
_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`(?P<path>\$.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")

# How far ahead `not_before` may lie. A calendar ends in 9999, and limits are counted from there on.
FARTHEST = timedelta(days=100 * 365)

T = TypeVar("T")


def read_as(body: dict[str, Any], kind: type[T]) -> T:
    """`body` as a `kind`. Raises Refused `field_unknown` (400) or `input_invalid` (422), naming the path."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind) from error


def read_body(body: dict[str, Any]) -> Submission:
    """The body as a Submission, as `read_as` does it."""
    return read_as(body, Submission)


def _refusal(text: str, kind: Any) -> Refused:
    parts = _AT.match(text)
    if parts is None:
        raise ValueError(f"msgspec words its errors in a new way: {text}")
    what, path = parts["what"], parts["path"] or "$"
    unknown = _UNKNOWN.match(what)
    if unknown:
        error = FieldError(f"{path}.{unknown['name']}", "is not a field of this request")
        return Refused("field_unknown", f"{error.path}: {error.message}", errors=(error,))
    missing = _MISSING.match(what)
    if missing:
        return invalid(FieldError(f"{path}.{missing['name']}", "is required"))
    said = what.replace(f"matching regex {TOKEN_PATTERN!r}", "of 1 to 64 characters A-Z a-z 0-9 _ -")
    said = with_choices(said, kind, path)
    return invalid(FieldError(path, f"a name in it: {said}" if parts["key"] else said))


def check_id(job_id: str) -> str:
    """`job_id`, if a client may choose it. Raises Refused `input_invalid`."""
    if not is_token(job_id):
        raise invalid(FieldError("$.id", "a job id is 1 to 64 of A-Z a-z 0-9 _ -"))
    return job_id


def make_job(  # noqa: PLR0913 - each is one fact of the request
    key: JobKey,
    digest: str,
    endpoint: Endpoint,
    submission: Submission,
    given: Given,
    *,
    missing: tuple[str, ...],
    trace_id: str,
    at: datetime,
) -> Job:
    """The record that `submission` makes, `missing` the digests still to come.

    Raises Refused `input_invalid`.
    """
    start, deadline = _in_utc(submission.not_before, "not_before"), _in_utc(submission.deadline, "deadline")
    _check_times(start, deadline, at)
    later = bool(missing or given.remote) or (start is not None and start > at)
    return Job(
        id=key.id,
        owner=key.owner,
        endpoint=endpoint.name,
        pool=endpoint.queue,
        status=Status.SCHEDULED if later else Status.QUEUED,
        digest=digest,
        input=given.input,
        missing=missing,
        fetching=given.remote,
        policy=_resolved(submission.policy, endpoint),
        priority=submission.priority,
        webhook=submission.webhook,
        tags=submission.tags,
        trace_id=trace_id,
        not_before=start,
        deadline=deadline,
        created_at=at,
        queued_at=None if later else at,
    )


def _in_utc(moment: datetime | None, name: str) -> datetime | None:
    """Every time on the wire is UTC, whatever zone it came in."""
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError as error:  # the first or the last hours that a datetime can tell
        raise invalid(FieldError(f"$.{name}", "is no time that can be told in UTC")) from error


def _check_times(start: datetime | None, deadline: datetime | None, at: datetime) -> None:
    if start is not None and start - at > FARTHEST:
        raise invalid(FieldError("$.not_before", "lies more than a hundred years ahead"))
    if deadline is not None and deadline <= at:
        raise invalid(FieldError("$.deadline", "lies in the past"))
    if deadline is not None and start is not None and deadline <= start:
        raise invalid(FieldError("$.deadline", "lies before not_before: the job could never start"))


def _resolved(asked: PolicyRequest, endpoint: Endpoint) -> Policy:
    """What the client left out comes from the endpoint, then from Policy's own defaults."""
    of_endpoint = {"stall_timeout_s": endpoint.timeouts.stall_s, "max_attempts": endpoint.retry.max_attempts}
    of_client = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    return Policy(**(of_endpoint | of_client))
