"""The Python client of Lamplighter: submit jobs to an edge, follow them and download their outputs.

`Client` blocks and `AsyncClient` awaits; their methods have the same names. Start reading at `client`.

- `client`, `async_client`: the methods.
- `transport`, `async_transport`: HTTP calls, uploads and downloads.
- `api` (requests and answers as values), `follow` (event streams), `upload` (resumable uploads): no I/O.
- `trust`: which certificate of an edge is trusted.
- `files`, `digest_cache`: local files and their digests.
- `cli`: the command `lamplighter`. It also starts the edge, the runner and the relay.

Everything outside `cli` imports only `schemas`. Programs may rely on the names that are exported here.
"""

from lamplighter.api import Asset, Batch
from lamplighter.async_client import AsyncClient
from lamplighter.client import Client
from lamplighter.errors import (
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
from lamplighter.follow import Event
from schemas.host import HostView
from schemas.job_view import JobView
from schemas.usage import UsageReport

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
