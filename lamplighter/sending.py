"""A file on its way to the edge, without the network: what to ask next, and what an answer means.

A small file goes in one PUT. A larger one is a tus upload: when a connection breaks, or the edge restarts, the edge is
asked how much it has and the rest is sent. Both clients are built on it.
"""

import base64
from collections.abc import Callable, Mapping
from urllib.parse import quote

from msgspec import Struct

from lamplighter import wire
from lamplighter.errors import LamplighterError
from schemas.asset import SCHEME

SMALL = 4 * 1024 * 1024  # bytes: sent anew rather than resumed
# Seconds before the next try; without a byte of progress there is no try after the last. An edge's restart is within.
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
_TUS = {"Tus-Resumable": "1.0.0"}
_PASSING = frozenset({429, 500, 502, 503, 504})  # of the edge, or of a proxy before it
_ELSEWHERE = frozenset({409, 423})  # another offset, or a connection of ours that the edge still holds
_GONE = frozenset({404, 410})
_LOCKED = 423


class Request(Struct, frozen=True):
    """What to send. `start`: the body is the file from there on; None: there is no body."""

    method: str
    path: str
    headers: dict[str, str]
    start: int | None = None


class Sending:
    """One file. `place`: the path of an upload begun earlier, to go on with. `asset` is set when it has arrived."""

    def __init__(self, name: str, sha256: str, size: int, place: str | None = None) -> None:
        self._name, self._sha256, self._size = name, sha256, size
        self._offset: int | None = None
        self._best = 0
        self._failures = 0
        self.place = place
        self.asset: wire.Asset | None = None
        self.pause_s = 0.0

    @property
    def resumable(self) -> bool:
        """Whether it goes in pieces."""
        return self._size > SMALL

    def next(self) -> Request:
        """The request to make now, `pause_s` after the last."""
        if not self.resumable:
            # a name in another script travels percent-encoded
            headers = {"Content-Length": str(self._size), "X-Filename": quote(self._name)}
            return Request("PUT", f"/v1/assets/{self._sha256}", headers, 0)
        if self.place is None:
            return Request("POST", "/v1/uploads", self._creation())
        if self._offset is None:
            return Request("HEAD", self.place, _TUS)
        headers = _TUS | {
            "Upload-Offset": str(self._offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(self._size - self._offset),
        }
        return Request("PATCH", self.place, headers, self._offset)

    def _creation(self) -> dict[str, str]:
        told = {"filename": self._name, "sha256": self._sha256}
        pairs = (f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in told.items())
        return _TUS | {"Upload-Length": str(self._size), "Upload-Metadata": ",".join(pairs)}

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Take the edge's answer. Raises Rejected, for what trying again cannot mend or has not mended."""
        if status < 400:
            self._taken(headers, body)
        elif status == _LOCKED:
            self._offset, self.pause_s = None, 1.0  # somebody is there, so it is no failure
        elif status in _GONE and self.place is not None:
            self.place = self._offset = None
            self._failed(wire.refusal(status, body))
        elif status in _PASSING or status in _ELSEWHERE:
            self._failed(wire.refusal(status, body))
        else:
            raise wire.refusal(status, body)

    def cut(self, error: LamplighterError) -> None:
        """No answer came. Raises `error` once that has been so too often in a row."""
        self._failed(error)

    def _taken(self, headers: Mapping[str, str], body: bytes) -> None:
        self.pause_s = 0.0
        if not self.resumable:
            self.asset = wire.read_asset(body)
            return
        if headers.get("lamplighter-asset") == SCHEME + self._sha256:
            self.asset = wire.already(self._sha256, self._name, self._size)
            return
        self.place = headers.get("location", self.place)
        self._offset = int(headers.get("upload-offset", 0))
        if self._offset > self._best:
            self._best, self._failures = self._offset, 0

    def _failed(self, error: LamplighterError) -> None:
        if self._failures == len(PAUSES_S):
            raise error
        self.pause_s = PAUSES_S[self._failures]
        self._failures += 1
        self._offset = None


class Sent:
    """How far a bar stands, whatever had to be sent twice."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._at = 0

    def from_(self, start: int) -> Callable[[int], None]:
        """What to tell the bytes of a request that begins at `start`."""
        self._move(start - self._at)
        return self._move

    def _move(self, amount: int) -> None:
        self._at += amount
        if amount:
            self._advance(amount)


def note_of(url: str, sha256: str) -> str:
    """Under which name an unfinished upload is remembered between two runs of a program."""
    return f"{quote(url, safe=':/')} {sha256}"
