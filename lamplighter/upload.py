"""A file on its way to the edge, without the network: what to ask next, and what an answer means.

A small file goes in one PUT. A larger one is a tus upload: when a connection breaks, or the edge restarts, the edge is
asked how much it has and the rest is sent. Both clients are built on it.
"""

import base64
from collections.abc import Callable, Mapping
from urllib.parse import quote

from msgspec import Struct

from lamplighter import api
from lamplighter.errors import LamplighterError
from schemas.asset import DIGEST_SCHEME

SINGLE_PUT_LIMIT_BYTES = 4 * 1024 * 1024  # bytes: sent anew rather than resumed
# Seconds before the next try; without a byte of progress there is no try after the last. An edge's restart is within.
RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
_TUS_HEADERS = {"Tus-Resumable": "1.0.0"}
_TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})  # of the edge, or of a proxy before it
_CONFLICT_STATUSES = frozenset({409, 423})  # another offset, or a connection of ours that the edge still holds
_GONE_STATUSES = frozenset({404, 410})
_LOCKED_STATUS = 423


class UploadRequest(Struct, frozen=True):
    """What to send. `start`: the body is the file from there on; None: there is no body."""

    method: str
    path: str
    headers: dict[str, str]
    start: int | None = None


class UploadPlan:
    """One file. `place`: the path of an upload begun earlier, to go on with. `asset` is set when it has arrived."""

    def __init__(self, name: str, sha256: str, size: int, place: str | None = None) -> None:
        self._name, self._sha256, self._size = name, sha256, size
        self._offset: int | None = None
        self._highest_offset = 0
        self._failures = 0
        self.upload_path = place
        self.asset: api.Asset | None = None
        self.delay_s = 0.0

    @property
    def is_resumable(self) -> bool:
        """Whether it goes in pieces."""
        return self._size > SINGLE_PUT_LIMIT_BYTES

    def next_request(self) -> UploadRequest:
        """The request to make now, `pause_s` after the last."""
        if not self.is_resumable:
            # a name in another script travels percent-encoded
            headers = {"Content-Length": str(self._size), "X-Filename": quote(self._name)}
            return UploadRequest("PUT", f"/v1/assets/{self._sha256}", headers, 0)
        if self.upload_path is None:
            return UploadRequest("POST", "/v1/uploads", self._creation_headers())
        if self._offset is None:
            return UploadRequest("HEAD", self.upload_path, _TUS_HEADERS)
        headers = _TUS_HEADERS | {
            "Upload-Offset": str(self._offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(self._size - self._offset),
        }
        return UploadRequest("PATCH", self.upload_path, headers, self._offset)

    def _creation_headers(self) -> dict[str, str]:
        told = {"filename": self._name, "sha256": self._sha256}
        pairs = (f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in told.items())
        return _TUS_HEADERS | {"Upload-Length": str(self._size), "Upload-Metadata": ",".join(pairs)}

    def on_response(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Take the edge's answer. Raises Rejected, for what trying again cannot mend or has not mended."""
        if status < 400:
            self._on_success(headers, body)
        elif status == _LOCKED_STATUS:
            self._offset, self.delay_s = None, 1.0  # somebody is there, so it is no failure
        elif status in _GONE_STATUSES and self.upload_path is not None:
            self.upload_path = self._offset = None
            self._on_failure(api.error_from_response(status, body))
        elif status in _TRANSIENT_STATUSES or status in _CONFLICT_STATUSES:
            self._on_failure(api.error_from_response(status, body))
        else:
            raise api.error_from_response(status, body)

    def on_connection_error(self, error: LamplighterError) -> None:
        """No answer came. Raises `error` once that has been so too often in a row."""
        self._on_failure(error)

    def _on_success(self, headers: Mapping[str, str], body: bytes) -> None:
        self.delay_s = 0.0
        if not self.is_resumable:
            self.asset = api.decode_asset(body)
            return
        if headers.get("lamplighter-asset") == DIGEST_SCHEME + self._sha256:
            self.asset = api.known_asset(self._sha256, self._name, self._size)
            return
        self.upload_path = headers.get("location", self.upload_path)
        self._offset = int(headers.get("upload-offset", 0))
        if self._offset > self._highest_offset:
            self._highest_offset, self._failures = self._offset, 0

    def _on_failure(self, error: LamplighterError) -> None:
        if self._failures == len(RETRY_DELAYS_S):
            raise error
        self.delay_s = RETRY_DELAYS_S[self._failures]
        self._failures += 1
        self._offset = None


class UploadProgress:
    """How far a bar stands, whatever had to be sent twice."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._position = 0

    def start_at(self, start: int) -> Callable[[int], None]:
        """What to tell the bytes of a request that begins at `start`."""
        self._advance_by(start - self._position)
        return self._advance_by

    def _advance_by(self, amount: int) -> None:
        self._position += amount
        if amount:
            self._advance(amount)


def resume_key(url: str, sha256: str) -> str:
    """Under which name an unfinished upload is remembered between two runs of a program."""
    return f"{quote(url, safe=':/')} {sha256}"
