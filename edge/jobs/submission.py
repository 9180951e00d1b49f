"""Admission: check that the broker can keep new work, check the body of a submit, and build the job from it.

`Admission.admit` does it all. The job that it returns has every limit resolved, and is not stored yet.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from anyio import Lock

from bus.health import BrokerHealth, BrokerStatus
from bus.interface import BrokerUnreachable, VersionedRecord
from edge.assets.service import AssetService
from edge.core.clock import Clock, Entropy
from edge.core.validation import ValidatedInput, asset_missing_problem, decode_as, input_invalid_problem, validate_input
from edge.hosts.endpoints import EndpointRegistry
from edge.outbound import AllowList, UrlRefused, parse_url
from edge.owners.quotas import OwnerQuotas
from edge.owners.secrets import SecretStore
from schemas.endpoint import Endpoint
from schemas.events import Submitted
from schemas.job import (
    TRACE_ID_LIMIT_CHARS,
    Job,
    JobKey,
    Policy,
    PolicyRequest,
    Status,
    Submission,
    derive_job_id,
    is_token,
    make_uuid7,
)
from schemas.problems import FieldError, ProblemError

# New work is refused when this share of the broker's store is used, so that results can still be recorded.
STORE_USED_LIMIT_RATIO = 0.8
_STATUS_MAX_AGE_S = 2.0
_STALE_STATUS_MAX_AGE_S = 4.0  # while a new status is being fetched
_RETRY_AFTER_S = 5


class BrokerReadiness:
    """Caches the broker's status for two seconds, so that a submit rarely waits for it."""

    def __init__(self, health: BrokerHealth, clock: Clock, *, allow_unsynced: bool = False) -> None:
        self._health = health
        self._clock = clock
        self._allow_unsynced = allow_unsynced
        self._status: BrokerStatus | None = None
        self._fetched_at = clock()
        self._fetch_lock = Lock()

    @property
    def degraded(self) -> tuple[str, ...]:
        """Faults of single servers of the broker, as of the last status, while the other servers do the work."""
        return self._status.degraded if self._status else ()

    async def check(self) -> None:
        """Raise the ProblemError of `problem` if new work cannot be accepted."""
        problem = await self.problem()
        if problem is not None:
            raise problem

    async def problem(self) -> ProblemError | None:
        """Return why new work cannot be accepted: `unavailable` or `store_full`. None: it can be accepted."""
        if not self._health.is_connected:
            return _broker_unavailable(self._health.fault)
        status = await self._current_status()
        return _broker_unavailable() if status is None else self._status_problem(status)

    def _status_problem(self, status: BrokerStatus) -> ProblemError | None:
        if status.write_failed:
            return ProblemError(
                "store_full",
                "the broker could not write because its disk is full or broken, and it stores nothing until a restart: "
                "make room on that disk, then restart nats-server (`lamplighter up` restarts it by itself)",
            )
        if status.is_durable is not True and not self._allow_unsynced:
            return ProblemError(
                "unavailable",
                "the broker does not sync every write, so a power cut could lose accepted jobs: set sync_interval: "
                "always in nats.conf, or allow_unsynced at the edge",
                retry_after_s=_RETRY_AFTER_S,
            )
        if status.used_share >= STORE_USED_LIMIT_RATIO:
            return ProblemError(
                "store_full",
                f"the broker's store is {status.used_share:.0%} full, and new work is refused from "
                f"{STORE_USED_LIMIT_RATIO:.0%} on: delete jobs or give it more space",
            )
        return None

    async def _current_status(self) -> BrokerStatus | None:
        """Return the status from the cache or from the broker; None if the broker does not answer."""
        cached = self._cached_status(_STALE_STATUS_MAX_AGE_S if self._fetch_lock.locked() else _STATUS_MAX_AGE_S)
        if cached is not None:
            return cached
        async with self._fetch_lock:
            cached = self._cached_status(_STATUS_MAX_AGE_S)
            return cached if cached is not None else await self._fetch_status()

    def _cached_status(self, max_age_s: float) -> BrokerStatus | None:
        """Return the last status if it is younger than `max_age_s`."""
        age = (self._clock() - self._fetched_at).total_seconds()
        return self._status if 0 <= age < max_age_s else None

    async def _fetch_status(self) -> BrokerStatus | None:
        try:
            self._status = await self._health.status()
        except BrokerUnreachable:
            return None
        self._fetched_at = self._clock()
        return self._status


def _broker_unavailable(fault: str = "") -> ProblemError:
    detail = fault or "the broker does not answer: try again in a few seconds"
    return ProblemError("unavailable", detail, retry_after_s=_RETRY_AFTER_S)


# The latest `not_before`, from now. Python's calendar ends in 9999, and the job's timeouts are added to this time.
NOT_BEFORE_LIMIT = timedelta(days=100 * 365)


def decode_submission(body: dict[str, Any]) -> Submission:
    """Decode the body as a Submission. Raises ProblemError as `decode_as`."""
    return decode_as(body, Submission)


def check_job_id(job_id: object, path: str = "$.id") -> str:
    """Return `job_id` if it is a valid id. Raises ProblemError `input_invalid` for the field at `path`."""
    if not isinstance(job_id, str) or not is_token(job_id):
        raise input_invalid_problem(FieldError(path, "a job id must have 1 to 64 characters of A-Z a-z 0-9 _ -"))
    return job_id


def build_job(  # noqa: PLR0913 - each is one fact of the request
    key: JobKey,
    digest: str,
    endpoint: Endpoint,
    submission: Submission,
    validated: ValidatedInput,
    *,
    missing: tuple[str, ...],
    trace_id: str,
    at: datetime,
) -> Job:
    """Build the record of a submission; `missing`: the digests of its input that are not uploaded yet.

    Raises ProblemError `input_invalid`.
    """
    start, deadline = _to_utc(submission.not_before, "not_before"), _to_utc(submission.deadline, "deadline")
    _check_times(start, deadline, at)
    is_scheduled = bool(missing or validated.pending_urls) or (start is not None and start > at)
    return Job(
        id=key.id,
        owner=key.owner,
        endpoint=endpoint.name,
        pool=endpoint.effective_pool,
        status=Status.SCHEDULED if is_scheduled else Status.QUEUED,
        request_digest=digest,
        input=validated.input,
        missing=missing,
        pending_urls=validated.pending_urls,
        policy=_effective_policy(submission.policy, endpoint),
        priority=submission.priority,
        webhook=submission.webhook,
        tags=submission.tags,
        trace_id=trace_id,
        not_before=start,
        deadline=deadline,
        created_at=at,
        queued_at=None if is_scheduled else at,
    )


def _to_utc(moment: datetime | None, name: str) -> datetime | None:
    """Return the time in UTC. Raises ProblemError `input_invalid`."""
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError as error:  # within hours of the first or the last datetime
        raise input_invalid_problem(FieldError(f"$.{name}", "cannot be expressed in UTC")) from error


def _check_times(start: datetime | None, deadline: datetime | None, at: datetime) -> None:
    if start is not None and start - at > NOT_BEFORE_LIMIT:
        raise input_invalid_problem(FieldError("$.not_before", "is more than a hundred years in the future"))
    if deadline is not None and deadline <= at:
        raise input_invalid_problem(FieldError("$.deadline", "is in the past"))
    if deadline is not None and start is not None and deadline <= start:
        raise input_invalid_problem(FieldError("$.deadline", "is before not_before: the job could never start"))


def _effective_policy(request: PolicyRequest, endpoint: Endpoint) -> Policy:
    """Resolve each limit: from the client, else from the endpoint, else the default of Policy."""
    of_endpoint = {"stall_timeout_s": endpoint.timeouts.stall_s, "max_attempts": endpoint.retry.max_attempts}
    of_client = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not None}
    return Policy(**(of_endpoint | of_client))


def check_client_url(url: str, path: str, allow_list: AllowList) -> None:
    """Raise ProblemError `url_refused` for a URL that is forbidden whatever its host resolves to."""
    try:
        parse_url(url, allow_list)
    except UrlRefused as error:
        field_error = FieldError(path, str(error))
        raise ProblemError("url_refused", f"{path}: {field_error.message}", errors=(field_error,)) from error


class Admission:
    """Decides whether a request may become a job. Every method raises ProblemError."""

    def __init__(  # noqa: PLR0913 - the services that it calls
        self,
        *,
        readiness: BrokerReadiness,
        endpoints: EndpointRegistry,
        assets: AssetService,
        url_allow_list: AllowList,
        clock: Clock,
        entropy: Entropy,
        quotas: OwnerQuotas,
        secrets: SecretStore,
    ) -> None:
        self.readiness = readiness
        self._endpoints = endpoints
        self._assets = assets
        self._url_allow_list = url_allow_list
        self._clock = clock
        self._entropy = entropy
        self._secrets = secrets
        self.quotas = quotas

    def choose_id(self, owner: str, job_id: str | None, idempotency_key: str | None) -> str:
        """Return the id of the job that a request is for: the one that it names, or one by its key, or a new one."""
        if job_id is not None:
            return check_job_id(job_id)
        if idempotency_key is not None:
            return derive_job_id(owner, idempotency_key)
        return make_uuid7(int(self._clock().timestamp() * 1000), self._entropy(10))

    async def validate(self, body: dict[str, Any]) -> None:
        """Check what does not depend on uploaded files, so that no file is stored for a request that must fail."""
        submission = decode_submission(body)
        endpoint = self._endpoints.get(submission.endpoint)
        self._check_url_targets(submission, await validate_input(endpoint, submission.input))

    def _check_url_targets(self, submission: Submission, validated: ValidatedInput) -> None:
        if submission.webhook is not None:
            check_client_url(submission.webhook.url, "$.webhook.url", self._url_allow_list)
        for pending in validated.pending_urls:
            check_client_url(pending.url, f"$.input{pending.path.removeprefix('$')}", self._url_allow_list)

    async def is_equivalent(self, history: Sequence[VersionedRecord], body: dict[str, Any]) -> bool:
        """Return whether `body` requests the work of the job with these revisions.

        The endpoint and the input are compared, with defaults filled in and files by their digests. Limits, priority
        and tags are not. Every input since the last submit counts, because the digest of a downloaded file replaces its
        URL.
        """
        submission = decode_submission(body)
        endpoint = self._endpoints.get(submission.endpoint)
        job_input = (await validate_input(endpoint, submission.input)).input
        start = max((n for n, entry in enumerate(history) if isinstance(entry.record.event, Submitted)), default=0)
        jobs = (entry.record.job for entry in history[start:])
        return any(job.endpoint == endpoint.name and job.input == job_input for job in jobs)

    async def admit(self, key: JobKey, digest: str, body: dict[str, Any], trace_id: str | None) -> Job:
        """Return the record for `body`; `digest` is the digest of the request.

        Writes no record, but marks the assets of the input as used now.
        """
        await self.readiness.check()
        submission = decode_submission(body)
        endpoint = self._endpoints.get(submission.endpoint)
        validated = await validate_input(endpoint, submission.input)
        self._check_url_targets(submission, validated)
        missing = await self._assets.find_missing(key.owner, validated.digests)
        if missing and not submission.await_input:
            raise asset_missing_problem(missing)
        await self._secrets.check_present(endpoint, key.owner)
        trace = submission.trace_id or (trace_id or "")[:TRACE_ID_LIMIT_CHARS] or self._entropy(16).hex()
        return build_job(
            key, digest, endpoint, submission, validated, missing=missing, trace_id=trace, at=self._clock()
        )
