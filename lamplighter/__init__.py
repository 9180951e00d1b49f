"""Lamplighter for Python programs: submit jobs to an edge, follow them, fetch what they made."""

from lamplighter.aio import AsyncClient
from lamplighter.errors import JobFailed, LamplighterError, NotFound, Rejected, Unauthorized, Unreachable
from lamplighter.sdk import Client

__all__ = [
    "AsyncClient",
    "Client",
    "JobFailed",
    "LamplighterError",
    "NotFound",
    "Rejected",
    "Unauthorized",
    "Unreachable",
]
