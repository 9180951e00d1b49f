"""Every refusal a client can meet: the closed list of codes (PROTOCOLS 1) and the problem document (RFC 9457)."""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct


class Row(NamedTuple):
    """HTTP status and title of a code."""

    status: int
    title: str


PROBLEMS: Mapping[str, Row] = {
    "body_malformed": Row(400, "The body cannot be read"),
    "field_unknown": Row(400, "The request has an unknown field"),
    "unauthorized": Row(401, "A valid API key is needed"),
    "forbidden": Row(403, "The key lacks a scope"),
    "not_found": Row(404, "There is no such thing"),
    "endpoint_unknown": Row(404, "No host offers this endpoint"),
    "head_timeout": Row(408, "The head of the request came too slowly"),
    "conflict": Row(409, "The id is taken by another request"),
    "job_final": Row(409, "The job has already ended"),
    "job_not_final": Row(409, "The job has not ended yet"),
    "deadline_passed": Row(409, "The job's deadline has passed"),
    "asset_in_use": Row(409, "A job that has not ended needs the asset"),
    "owner_deleting": Row(409, "The owner is being deleted"),
    "offset_mismatch": Row(409, "The upload stands elsewhere"),
    "tus_version": Row(412, "Another version of tus is spoken here"),
    "body_too_large": Row(413, "The body is too large"),
    "media_type_unknown": Row(415, "The body is of another media type than this takes"),
    "input_invalid": Row(422, "The input does not fit the endpoint"),
    "asset_missing": Row(422, "An asset has not been uploaded"),
    "digest_mismatch": Row(422, "The bytes do not have the digest named"),
    "idempotency_mismatch": Row(422, "The idempotency key was used for another request"),
    "url_refused": Row(422, "The URL may not be fetched"),
    "upload_locked": Row(423, "Another request is at this upload"),
    "rate_limited": Row(429, "Too many requests"),
    "quota_exceeded": Row(429, "A quota is used up"),
    "too_many_connections": Row(429, "Too many connections are open"),
    "head_too_large": Row(431, "The head of the request is too large"),
    "checksum_mismatch": Row(460, "The bytes do not have the checksum named"),  # tus 1.0, "Checksum"
    "internal": Row(500, "The server failed"),
    "unavailable": Row(503, "The server cannot take this now"),
    "store_full": Row(507, "The server's store is full"),
}


class FieldError(Struct, frozen=True):
    """One thing wrong with the input; `path` like `$.input.video`."""

    path: str
    message: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: tuple[FieldError, ...] = ()
    missing: tuple[str, ...] = ()
    instance: str | None = None


class Refused(Exception):
    """A request that is not carried out. Nothing was written. Services raise it, the border answers its problem."""

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
        """The document to answer with."""
        status, title = PROBLEMS[self.code]
        return Problem(
            type=f"urn:lamplighter:problem:{self.code}",
            title=title,
            status=status,
            detail=self.detail,
            code=self.code,
            errors=self.errors,
            missing=self.missing,
        )
