"""Every refusal of a request: the closed list of codes, and the problem document (RFC 9457)."""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct


class ProblemType(NamedTuple):
    """The HTTP status and title of a code."""

    status: int
    title: str


PROBLEM_TYPES: Mapping[str, ProblemType] = {
    "body_malformed": ProblemType(400, "The body cannot be read"),
    "field_unknown": ProblemType(400, "The request has an unknown field"),
    "unauthorized": ProblemType(401, "A valid API key is needed"),
    "forbidden": ProblemType(403, "The key lacks a scope"),
    "join_token_expired": ProblemType(403, "The join token has expired"),
    "join_token_revoked": ProblemType(403, "The join token was revoked"),
    "join_token_used_up": ProblemType(403, "As many hosts as the join token allows have joined"),
    "not_found": ProblemType(404, "Not found"),
    "endpoint_unknown": ProblemType(404, "No host offers this endpoint"),
    "head_timeout": ProblemType(408, "The head of the request came too slowly"),
    "conflict": ProblemType(409, "The id is taken by another request"),
    "job_final": ProblemType(409, "The job has already ended"),
    "job_not_final": ProblemType(409, "The job has not ended yet"),
    "deadline_passed": ProblemType(409, "The job's deadline has passed"),
    "asset_in_use": ProblemType(409, "A job that has not ended needs the asset"),
    "owner_deleting": ProblemType(409, "The owner is being deleted"),
    "offset_mismatch": ProblemType(409, "The upload is at another offset"),
    "tus_version": ProblemType(412, "This version of tus is not supported"),
    "body_too_large": ProblemType(413, "The body is too large"),
    "media_type_unknown": ProblemType(415, "The media type of the body is not supported"),
    "input_invalid": ProblemType(422, "The input does not fit the endpoint"),
    "asset_missing": ProblemType(422, "An asset has not been uploaded"),
    "secret_missing": ProblemType(422, "A secret that the endpoint needs is not set"),
    "digest_mismatch": ProblemType(422, "The bytes do not have the digest named"),
    "idempotency_mismatch": ProblemType(422, "The idempotency key was used for another request"),
    "url_refused": ProblemType(422, "The URL may not be fetched"),
    "upload_locked": ProblemType(423, "Another request is writing to this upload"),
    "rate_limited": ProblemType(429, "Too many requests"),
    "quota_exceeded": ProblemType(429, "A quota is used up"),
    "too_many_connections": ProblemType(429, "Too many connections are open"),
    "head_too_large": ProblemType(431, "The head of the request is too large"),
    "checksum_mismatch": ProblemType(460, "The bytes do not have the checksum named"),  # tus 1.0, "Checksum"
    "internal": ProblemType(500, "The server failed"),
    "not_set_up": ProblemType(501, "The settings of this server do not allow this"),
    "unavailable": ProblemType(503, "The server cannot accept this now"),
    "store_full": ProblemType(507, "The server's store is full"),
}


class FieldError(Struct, frozen=True):
    """One fault in the input; `path` is like `$.input.video`."""

    path: str
    message: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an error response, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: tuple[FieldError, ...] = ()
    missing: tuple[str, ...] = ()
    instance: str | None = None


class ProblemError(Exception):
    """The request is refused, and nothing was written. Services raise it; the HTTP layer answers its problem."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        missing: tuple[str, ...] = (),
        retry_after_s: int | None = None,
    ) -> None:
        self.code, self.detail, self.errors, self.missing, self.retry_after_s = (
            code,
            detail,
            errors,
            missing,
            retry_after_s,
        )
        super().__init__(f"{code}: {detail}")

    @property
    def problem(self) -> Problem:
        """The problem document (RFC 9457) that the answer carries."""
        status, title = PROBLEM_TYPES[self.code]
        return Problem(
            type=f"urn:lamplighter:problem:{self.code}",
            title=title,
            status=status,
            detail=self.detail,
            code=self.code,
            errors=self.errors,
            missing=self.missing,
        )
