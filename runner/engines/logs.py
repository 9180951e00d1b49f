"""Docker's log stream, sans-io: frames out of bytes, and a cursor by which a later life takes up exactly there.

A frame is 8 bytes (stream, 0, 0, 0, length in big endian) and, as timestamps are asked for, an RFC 3339 time with
nanoseconds, a space, and one line with its newline, or 16 KiB of a longer one. Source: Docker Engine API, "Attach to a
container", stream format; moby api/server/httputils/write_log_stream.go.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from runner.engines.cut import whole
from runner.engines.port import Chunk, EngineGone, Mark
from schemas.container import Stream

HEADER = struct.Struct(">BxxxL")
STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}
SECOND = 1_000_000_000
PIECE = 16_384  # bytes of an unfinished piece, exactly: moby daemon/logger/copier.go sends one when its buffer is full


class BrokenLog(EngineGone):
    """The daemon says something is wrong inside the stream; a new request may read on."""


class Frame(NamedTuple):
    """One entry of the log."""

    stream: Stream
    ns: int  # since 1970
    data: bytes


@lru_cache(maxsize=16)
def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def nanoseconds(text: str) -> int:
    """RFC 3339 with exactly nine decimals, in whatever zone the daemon runs in, as ns since 1970."""
    return _seconds(text[:19] + text[29:]) * SECOND + int(text[20:29])


class Frames:
    """Takes the response's bytes as they come."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises BrokenLog."""
        self._kept += data
        found, at = [], 0
        while len(self._kept) >= at + HEADER.size:
            kind, length = HEADER.unpack_from(self._kept, at)
            end = at + HEADER.size + length
            if len(self._kept) < end:
                break
            found.append(_frame(kind, bytes(self._kept[at + HEADER.size : end])))
            at = end
        del self._kept[:at]
        return found


def _frame(kind: int, payload: bytes) -> Frame:
    stamp, _, line = payload.partition(b" ")
    if kind not in STREAMS:
        raise BrokenLog(f"Docker broke off the log: {payload.decode(errors='replace')}")
    if not line.endswith(b"\n") and len(line) != PIECE:
        line += b"\n"  # driver `local` (20.10) drops the newline behind a long line's last piece
    return Frame(STREAMS[kind], nanoseconds(stamp.decode()), line)


class Cursor:
    """How much of a container's log has been read.

    Times alone cannot say it: a long line's pieces share one, and the two streams overtake each other by a moment.
    So a position is a whole second `base`, from which the log is asked for again, the number of frames already seen
    from there on, and the newest time seen: what is newer is new, even where rotation took frames meanwhile. `base`
    stays at least a second behind, so nothing that is still to come can lie before it.
    """

    def __init__(self, since: Mark | None) -> None:
        self.offset = since.offset if since else 0
        position = since.position if since else "0.0.0"
        self.base, self._seen, self._newest = (int(part) for part in position.split("."))
        self._next, self._next_seen = self._newest // SECOND + 1, 0
        self._skip = 0
        self._held: list[Frame] = []

    def rewind(self) -> int:
        """Before asking again: the second to ask from."""
        self._skip = self._seen
        self._held.clear()
        return self.base

    def take(self, frames: Iterable[Frame]) -> Iterator[Chunk]:
        """The frames not seen before, joined to chunks that end where a line ends."""
        for frame in frames:
            if self._repeated(frame):
                continue
            if self._held and self._held[0].stream != frame.stream:
                yield self._chunk(len(self._held))
            self._held.append(frame)
        yield from self._flush(ended=False)

    def close(self) -> Iterator[Chunk]:
        """What was held back, once nothing can follow."""
        yield from self._flush(ended=True)

    def _flush(self, *, ended: bool) -> Iterator[Chunk]:
        sizes = list(accumulate(len(frame.data) for frame in self._held))
        size = whole(b"".join(frame.data for frame in self._held), ended=ended)
        if size:
            yield self._chunk(bisect_right(sizes, size))

    def _repeated(self, frame: Frame) -> bool:
        if self._skip and frame.ns <= self._newest:
            self._skip -= 1
            return True
        self._skip = 0
        return False

    def _count(self, frame: Frame) -> None:
        self._newest = max(self._newest, frame.ns)
        self._seen += 1
        self._next_seen += self._next_seen > 0 or frame.ns >= self._next * SECOND  # the calendar may be set back
        if self._newest >= (self._next + 1) * SECOND:
            self.base, self._seen = self._next, self._next_seen
            self._next, self._next_seen = self._newest // SECOND + 1, 0

    def _chunk(self, frames: int) -> Chunk:
        part, self._held = self._held[:frames], self._held[frames:]
        for frame in part:
            self._count(frame)
        data = b"".join(frame.data for frame in part)
        self.offset += len(data)
        return Chunk(part[0].stream, data, Mark(self.offset, f"{self.base}.{self._seen}.{self._newest}"))
