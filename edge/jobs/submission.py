"""From the body of a submit to the record: wrong types and unknown fields named, limits resolved."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from edge.assets.service import AssetService
from edge.core.clock import Clock, Entropy
from edge.core.validation import ValidatedInput, asset_missing_problem, decode_as, input_invalid_problem, validate_input
from edge.hosts.endpoints import EndpointRegistry
from edge.jobs.readiness import BrokerReadiness
from edge.outbound.url_policy import AllowList, UrlRefused, parse_url
from edge.owners.quotas import OwnerQuotas
from schemas.endpoint import Endpoint
from schemas.ids import JobKey, is_token
from schemas.job import TRACE_ID_LIMIT_CHARS, Job, Policy, PolicyRequest, Submission
from schemas.problems import FieldError, ProblemError
from schemas.status import Status

# How far ahead `not_before` may lie. A calendar ends in 9999, and limits are counted from there on.
NOT_BEFORE_LIMIT = timedelta(days=100 * 365)


def decode_submission(body: dict[str, Any]) -> Submission:
    """The body as a Submission, as `read_as` does it."""
    return decode_as(body, Submission)


def check_job_id(job_id: str) -> str:
    """`job_id`, if a client may choose it. Raises Refused `input_invalid`."""
    if not is_token(job_id):
        raise input_invalid_problem(FieldError("$.id", "a job id is 1 to 64 of A-Z a-z 0-9 _ -"))
    return job_id


def build_job(  # noqa: PLR0913 - each is one fact of the request
    key: JobKey,
    digest: str,
    endpoint: Endpoint,
    submission: Submission,
    given: ValidatedInput,
    *,
    missing: tuple[str, ...],
    trace_id: str,
    at: datetime,
) -> Job:
    """The record that `submission` makes, `missing` the digests still to come.

    Raises Refused `input_invalid`.
    """
    start, deadline = _to_utc(submission.not_before, "not_before"), _to_utc(submission.deadline, "deadline")
    _check_times(start, deadline, at)
    later = bool(missing or given.pending_urls) or (start is not None and start > at)
    return Job(
        id=key.id,
        owner=key.owner,
        endpoint=endpoint.name,
        pool=endpoint.effective_pool,
        status=Status.SCHEDULED if later else Status.QUEUED,
        request_digest=digest,
        input=given.input,
        missing=missing,
        pending_urls=given.pending_urls,
        policy=_effective_policy(submission.policy, endpoint),
        priority=submission.priority,
        webhook=submission.webhook,
        tags=submission.tags,
        trace_id=trace_id,
        not_before=start,
        deadline=deadline,
        created_at=at,
        queued_at=None if later else at,
    )


def _to_utc(moment: datetime | None, name: str) -> datetime | None:
    """Every time on the wire is UTC, whatever zone it came in."""
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError as error:  # the first or the last hours that a datetime can tell
        raise input_invalid_problem(FieldError(f"$.{name}", "is no time that can be told in UTC")) from error


def _check_times(start: datetime | None, deadline: datetime | None, at: datetime) -> None:
    if start is not None and start - at > NOT_BEFORE_LIMIT:
        raise input_invalid_problem(FieldError("$.not_before", "lies more than a hundred years ahead"))
    if deadline is not None and deadline <= at:
        raise input_invalid_problem(FieldError("$.deadline", "lies in the past"))
    if deadline is not None and start is not None and deadline <= start:
        raise input_invalid_problem(FieldError("$.deadline", "lies before not_before: the job could never start"))


def _effective_policy(asked: PolicyRequest, endpoint: Endpoint) -> Policy:
    """What the client left out comes from the endpoint, then from Policy's own defaults."""
    of_endpoint = {"stall_timeout_s": endpoint.timeouts.stall_s, "max_attempts": endpoint.retry.max_attempts}
    of_client = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    return Policy(**(of_endpoint | of_client))


# MERGED edge/services/admission.py: Whether a request may become a job, and the record that it then is (DESIGN 3,
# "Submit", step 2).


def check_url(url: str, path: str, allowed: AllowList) -> None:
    """Raises Refused `url_refused` for a URL that no answer of DNS could make good."""
    try:
        parse_url(url, allowed)
    except UrlRefused as error:
        fault = FieldError(path, str(error))
        raise ProblemError("url_refused", f"{path}: {fault.message}", errors=(fault,)) from error


class Admission:
    """Checks bodies. Every method raises Refused."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it asks
        self,
        gate: BrokerReadiness,
        catalog: EndpointRegistry,
        assets: AssetService,
        allowed: AllowList,
        clock: Clock,
        entropy: Entropy,
        quotas: OwnerQuotas,
    ) -> None:
        self._gate = gate
        self._catalog = catalog
        self._assets = assets
        self._url_allow_list = allowed
        self._clock = clock
        self._entropy = entropy
        self.quotas = quotas

    async def validate(self, body: dict[str, Any]) -> None:
        """What no uploaded file can make acceptable is refused, so that none is kept for it."""
        submission = decode_submission(body)
        self._check_url_targets(
            submission, await validate_input(self._catalog.get(submission.endpoint), submission.input)
        )

    def _check_url_targets(self, submission: Submission, given: ValidatedInput) -> None:
        if submission.webhook is not None:
            check_url(submission.webhook.url, "$.webhook.url", self._url_allow_list)
        for fetch in given.pending_urls:
            check_url(fetch.url, f"$.input{fetch.path.removeprefix('$')}", self._url_allow_list)

    async def admit(self, key: JobKey, digest: str, body: dict[str, Any], trace_id: str | None) -> Job:
        """The record that `body` makes; `digest` is the request's. Nothing is written, but its assets are touched."""
        await self._gate.check()
        submission = decode_submission(body)
        endpoint = self._catalog.get(submission.endpoint)
        given = await validate_input(endpoint, submission.input)
        self._check_url_targets(submission, given)
        missing = await self._assets.find_missing(key.owner, given.digests)
        if missing and not submission.await_input:
            raise asset_missing_problem(missing)
        trace = submission.trace_id or (trace_id or "")[:TRACE_ID_LIMIT_CHARS] or self._entropy(16).hex()
        return build_job(key, digest, endpoint, submission, given, missing=missing, trace_id=trace, at=self._clock())
