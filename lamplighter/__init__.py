"""Lamplighter for Python programs: submit jobs to an edge, follow them, fetch what they made."""

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
    "Unauthorized",
    "Unreachable",
    "UsageReport",
]
