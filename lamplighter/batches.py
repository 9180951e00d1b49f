"""Many submits in one request, and what became of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from lamplighter.wire import Call, reader
from schemas.errors import Problem
from schemas.view import JobView


class Rejected(Struct, frozen=True):
    """A job that was not accepted: which of the batch, from 0, and why."""

    index: int
    problem: Problem


class Batch(Struct, frozen=True):
    """The jobs that are durable now, and those that were refused."""

    accepted: list[JobView]
    rejected: list[Rejected]


def batch(jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Call[Batch]:
    """Submit up to 1000 bodies, as `POST /v1/jobs` takes them."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    body = {"jobs": [dict(job) for job in jobs]}
    return Call(method="POST", path="/v1/batches", read=reader(Batch), body=body, headers=headers)
