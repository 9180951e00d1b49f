"""The Python client of Lamplighter: submit jobs to an edge, follow them and download their outputs.

`Client` blocks and `AsyncClient` awaits; their methods have the same names. Start reading at `client`.

- `client`, `async_client`: the methods.
- `transport`: HTTP calls, uploads and downloads of both, and which certificate of an edge is trusted.
- `api` (requests, answers and errors as values), `follow` (event streams): no I/O.
- `files`: local files, their digests, and the steps of a resumable upload.
- `cli`: the command `lamplighter`. It also starts the edge, the runner and the relay.

Everything outside `cli` imports only `schemas`. Programs may rely on the names that are exported here.
"""

from lamplighter.api import (
    Asset,
    Batch,
    Busy,
    Conflict,
    JobFailed,
    LamplighterError,
    NotFound,
    Rejected,
    TrustInvalid,
    Unauthorized,
    Unreachable,
)
from lamplighter.async_client import AsyncClient
from lamplighter.client import Client
from lamplighter.follow import Event
from schemas.host import HostView
from schemas.job_view import JobView, UsageReport

__all__ = [
    "Asset",
    "AsyncClient",
    "Batch",
    "Busy",
    "Client",
    "Conflict",
    "Event",
    "HostView",
    "JobFailed",
    "JobView",
    "LamplighterError",
    "NotFound",
    "Rejected",
    "TrustInvalid",
    "Unauthorized",
    "Unreachable",
    "UsageReport",
]
