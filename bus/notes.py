"""Notes of FEED as bytes; both buses use it."""

import msgspec

from schemas.events import RUBBISH
from schemas.feed import Note

encode = msgspec.json.encode
_decoder: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)


def readable(data: bytes) -> Note | None:
    """The note, None for what is none: a follower must not die of one bad message."""
    try:
        return _decoder.decode(data)
    except RUBBISH:
        return None
