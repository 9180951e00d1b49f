"""From the bytes of a bucket to a row; both buses use it."""

from typing import TypeVar

import msgspec
import structlog

from bus.port import Unreadable
from schemas.events import RUBBISH

T = TypeVar("T")

log = structlog.get_logger(__name__)


def read_row(decoder: msgspec.json.Decoder[T], subject: str, data: bytes) -> T:
    """The value stored at `subject`. Raises Unreadable."""
    try:
        return decoder.decode(data)
    except RUBBISH as error:
        raise Unreadable(f"{subject} does not hold a readable row ({error}): delete it or write it again") from error


def set_aside(error: Unreadable) -> None:
    """Log that a row is left out of a listing."""
    log.error("a row cannot be read, it is set aside", error=str(error))
