"""Files of this machine as inputs of a job: which inputs are files, their digests, and the steps of an upload.

Digests are kept in JSON files, so that a second submit does not read a file again.

The steps are without I/O: which request is next, and what its answer means. A small file is sent in one PUT. A larger
file is a tus upload: after a lost connection or a restart of the edge, a HEAD request asks how many bytes the edge has,
and the rest is sent. Both clients use them.
"""

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from lamplighter import api
from lamplighter.api import LamplighterError
from schemas.asset import DIGEST_SCHEME
from schemas.backoff import Backoff


def is_local_file(text: str) -> bool:
    """Return whether `text` is the path of an existing file. Accepts texts that cannot be a path."""
    return os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises for a text of over 255 bytes


def find_local_files(inputs: Mapping[str, Any]) -> dict[str, Path]:
    """Return the inputs that may name a local file: every Path, and each text that is the path of a file."""
    found = {}
    for name, value in inputs.items():
        if isinstance(value, Path):
            found[name] = value
        elif isinstance(value, str) and is_local_file(value):
            found[name] = Path(value)
    return found


def has_text_path(inputs: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
    """Return whether one of `files` was given as text: then the endpoint's schema decides whether it is a file."""
    return any(isinstance(inputs[name], str) for name in files)


def select_asset_inputs(
    inputs: Mapping[str, Any], files: Mapping[str, Path], schema: Mapping[str, Any]
) -> dict[str, Path]:
    """Return those of `files` that are Paths or are in a field whose schema takes a file.

    A text in any other field stays a text. Otherwise a program that forwards user input would upload any of its
    own files that the user names.
    """
    fields = schema.get("properties", {})
    return {
        name: path
        for name, path in files.items()
        if isinstance(inputs[name], Path) or fields.get(name, {}).get("format") == "asset"
    }


ENTRY_LIMIT = 10_000  # the oldest entry is dropped first
CHUNK_BYTES = 1024 * 1024  # of reads, uploads and downloads

ByteProgress = Callable[[int], None]


def ignore_progress(_: int) -> None:
    """Ignore the number of bytes done: the default progress callback."""


class JsonCache:
    """Texts by name in one JSON file. A damaged or missing file counts as empty; the last of two writers wins.

    The cache only saves work. Where it cannot be written (read-only home, full disk), an entry is not kept. What is not
    a regular file is left alone: as root, replacing /dev/null would break the machine.
    """

    def __init__(self, file: Path, limit: int = ENTRY_LIMIT) -> None:
        self._file = file
        self._limit = limit

    def get(self, name: str) -> str | None:
        """Return the text stored under `name`, or None."""
        return self._read().get(name)

    def put(self, name: str, text: str) -> None:
        """Store `text` under `name`, in place of an earlier entry."""
        self._write(self._read() | {name: text})

    def drop(self, name: str) -> None:
        """Remove the entry of `name`, if there is one."""
        known = self._read()
        if known.pop(name, None) is not None:
            self._write(known)

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}

    def _write(self, known: dict[str, str]) -> None:
        newest = dict(islice(known.items(), max(0, len(known) - self._limit), None))
        part = self._file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        with suppress(OSError):
            if self._file.exists() and not self._file.is_file():
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(newest))
            part.replace(self._file)


def hash_file(path: Path, advance: ByteProgress = ignore_progress) -> str:
    """Return the sha256 of the file in hex; call `advance` with the size of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


class DigestCache:
    """Digests of local files as `{"path:size:mtime_ns": digest}` in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._cache = JsonCache(file)

    def digest(self, path: Path, advance: ByteProgress = ignore_progress) -> str:
        """Return the file's sha256 in hex. Read the file only if its path, size or modification time is new."""
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        known = self._cache.get(key)
        if known is None:
            known = hash_file(path, advance)
            self._cache.put(key, known)
        return known


SINGLE_PUT_LIMIT_BYTES = 4 * 1024 * 1024  # a smaller file is sent again from its start instead of resumed
RETRY_LIMIT = 8  # retries without progress; their delays together are longer than a restart of an edge
RETRY_BACKOFF = Backoff(first_s=0.25, limit_s=8.0)
_TUS_HEADERS = {"Tus-Resumable": "1.0.0"}
_TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})  # from the edge or a proxy in front of it
_CONFLICT_STATUSES = frozenset({409, 423})  # wrong offset, or the edge has not closed our last connection yet
_GONE_STATUSES = frozenset({404, 410})
_LOCKED_STATUS = 423


class UploadRequest(Struct, frozen=True):
    """One request. The body is the file from `start` to its end; without `start` there is no body."""

    method: str
    path: str
    headers: dict[str, str]
    start: int | None = None


class UploadPlan:
    """The upload of one file. `upload_path` resumes an earlier upload. `asset` is set once the edge has the file."""

    def __init__(self, name: str, sha256: str, size: int, upload_path: str | None = None) -> None:
        self._name, self._sha256, self._size = name, sha256, size
        self._offset: int | None = None
        self._highest_offset = 0
        self._failures = 0
        self.upload_path = upload_path
        self.asset: api.Asset | None = None
        self.delay_s = 0.0

    @property
    def is_resumable(self) -> bool:
        """Whether the file is large enough for a tus upload."""
        return self._size > SINGLE_PUT_LIMIT_BYTES

    def next_request(self) -> UploadRequest:
        """Return the next request. Send it `delay_s` after the answer to the previous one."""
        if not self.is_resumable:
            # A header takes only ASCII, so the name is percent-encoded.
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
        metadata = {"filename": self._name, "sha256": self._sha256}
        pairs = (f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items())
        return _TUS_HEADERS | {"Upload-Length": str(self._size), "Upload-Metadata": ",".join(pairs)}

    def on_response(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Process the edge's answer. Raises Rejected if a retry cannot help, or if the retries are used up."""
        if status < 400:
            self._on_success(headers, body)
        elif status == _LOCKED_STATUS:
            self._offset, self.delay_s = None, 1.0  # the edge is up, so this does not count as a failure
        elif status in _GONE_STATUSES and self.upload_path is not None:
            self.upload_path = self._offset = None
            self._on_failure(api.error_from_response(status, body))
        elif status in _TRANSIENT_STATUSES or status in _CONFLICT_STATUSES:
            self._on_failure(api.error_from_response(status, body))
        else:
            raise api.error_from_response(status, body)

    def on_connection_error(self, error: LamplighterError) -> None:
        """Record that no answer came. Raises `error` once the retries are used up."""
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
        if self._failures == RETRY_LIMIT:
            raise error
        self.delay_s = RETRY_BACKOFF.delay_s(self._failures)
        self._failures += 1
        self._offset = None


class UploadProgress:
    """The position of a progress bar, correct also when bytes are sent twice."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._position = 0

    def start_at(self, start: int) -> Callable[[int], None]:
        """Set the position to `start` and return the callback for the bytes of the next request."""
        self._advance_by(start - self._position)
        return self._advance_by

    def _advance_by(self, amount: int) -> None:
        self._position += amount
        if amount:
            self._advance(amount)


def resume_key(url: str, sha256: str) -> str:
    """Return the cache key of an unfinished upload, the same in the next run of the program."""
    return f"{quote(url, safe=':/')} {sha256}"
