"""Lamplighter for Python programs: submit jobs to an edge, follow them, fetch what they made."""

from lamplighter.aio import AsyncClient
from lamplighter.batches import Batch
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
from lamplighter.sdk import Client
from lamplighter.wire import Asset, Event
from schemas.host import HostView
from schemas.usage import UsageReport
from schemas.view import JobView

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
