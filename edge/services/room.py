"""Waiting for a disk: what the edge can make anew from STATE must not end it."""

from collections.abc import Awaitable, Callable
from sqlite3 import OperationalError
from typing import TypeVar

import structlog
from anyio import sleep

T = TypeVar("T")

AGAIN_S = 1.0

_log = structlog.get_logger()


async def until_there_is_room(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again for as long as the disk is full or fails; who waits for the answer lags, and the edge goes on."""
    while True:
        try:
            return await ask()
        except OperationalError as error:
            _log.warning("index_waits", error=str(error))
        await sleep(AGAIN_S)
