"""Uploads on their way, in a folder: what was acknowledged is there after a crash and a power cut. Blocking.

    <owner>.<id>.json    the state, replaced in one step
    <owner>.<id>.part    the bytes, true up to the state's `offset`

What the bytes have beyond `offset` may be anything after a power cut, so it is cut off before more is appended.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from edge.store.port import BLOCK, StoreBroken
from edge.store.spool import WRITEBACK, disk_errors, durable_folder, sync_folder
from schemas.asset import Digest
from schemas.job import Moment
from schemas.words import Token, is_token

CHECKPOINT = 64 * 1024 * 1024  # bytes: at most this much of one request is sent again after a crash

_SUFFIXES = _STATE, _BYTES = (".json", ".part")


class Upload(Struct, frozen=True, kw_only=True):
    """One upload. `offset`: bytes that are durable. `length` None: not said yet. `metadata`: as the client wrote it.

    `expected`: the digest that the client named. `whole`: the digest, once every byte is there; `kept`: it is an asset.
    """

    id: Token
    owner: Token
    name: str
    media_type: str
    expires: Moment
    length: int | None = None
    metadata: str = ""
    expected: Digest | None = None
    offset: int = 0
    whole: Digest | None = None
    kept: bool = False

    @property
    def key(self) -> "UploadKey":
        """What names it."""
        return UploadKey(self.owner, self.id)


class UploadKey(NamedTuple):
    """What names an upload. Both are tokens, so a dot parts them in a file's name."""

    owner: Token
    id: Token


class Partials:
    """The folder. Keys are made of tokens: they become part of a path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk_errors():
            durable_folder(folder)

    def load(self, key: UploadKey) -> Upload | None:
        """The state, or None where there is no such upload. Raises StoreError."""
        with disk_errors():
            try:
                return msgspec.json.decode(self._place(key, _STATE).read_bytes(), type=Upload)
            except FileNotFoundError:
                return None
            except msgspec.DecodeError as error:
                raise StoreBroken(f"the state of upload {key.id} cannot be read ({error}): start it anew") from error

    def begin(self, upload: Upload) -> None:
        """Make room for its bytes, and its state durable."""
        with disk_errors():
            self.bytes_of(upload.key).touch(mode=0o600, exist_ok=False)
        self.save(upload)

    def save(self, upload: Upload) -> None:
        """Make the state durable. The bytes up to its offset must be so before."""
        with disk_errors():
            place = self._place(upload.key, _STATE)
            fresh = place.with_suffix(".new")
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(upload))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(place)
            sync_folder(self._folder)

    def bytes_of(self, key: UploadKey) -> Path:
        """Where its bytes lie."""
        return self._place(key, _BYTES)

    def _place(self, key: UploadKey, suffix: str) -> Path:
        if not (is_token(key.owner) and is_token(key.id)):
            raise ValueError(f"{key} names no upload")
        return self._folder / f"{key.owner}.{key.id}{suffix}"

    def drop_bytes(self, key: UploadKey) -> None:
        """The bytes are an asset now; the state stays, so that the client can still ask."""
        with disk_errors():
            self.bytes_of(key).unlink(missing_ok=True)

    def remove(self, key: UploadKey) -> None:
        """Forget all of it. The state first: without it the bytes are nobody's."""
        with disk_errors():
            self._place(key, _STATE).unlink(missing_ok=True)
            self.bytes_of(key).unlink(missing_ok=True)

    def unfinished(self, owner: Token) -> int:
        """How many uploads of the owner have not become assets."""
        with disk_errors():
            return sum(1 for _ in self._folder.glob(f"{owner}.*{_BYTES}"))

    def promised(self, owner: Token, growing: Mapping[UploadKey, int]) -> int:
        """How many bytes the owner's unfinished uploads have, or are to have. One that is `growing` counts as said."""
        with disk_errors():
            places = list(self._folder.glob(f"{owner}.*{_BYTES}"))
        uploads = [self.load(UploadKey(*place.stem.split("."))) for place in places]
        return sum(growing.get(one.key, one.length or one.offset) for one in uploads if one is not None)

    def keys(self, owner: Token | None = None) -> list[UploadKey]:
        """Every upload (of `owner`), those too of which a crash left bytes without a state."""
        with disk_errors():
            found = {path.stem.partition(".")[::2] for path in self._folder.iterdir() if path.suffix in _SUFFIXES}
        return sorted(UploadKey(*names) for names in found if owner in {None, names[0]})


class Appending:
    """Bytes being appended to an upload; its hash goes along. `write` and `hash` may run in two threads at once.

    `hasher`: of the bytes up to the offset, None where this process has not seen them. `upload`: as it was last saved.
    Raises StoreError.
    """

    def __init__(self, partials: Partials, upload: Upload, hasher: "hashlib._Hash | None") -> None:
        self._partials = partials
        self.upload = upload
        self._unsaved = 0
        self._pushed = upload.offset
        with disk_errors():
            self._file = os.open(partials.bytes_of(upload.key), os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._file, upload.offset)
            os.lseek(self._file, 0, os.SEEK_SET)
            self.hasher = hasher.copy() if hasher else self._hashed()
            os.lseek(self._file, upload.offset, os.SEEK_SET)

    def _hashed(self) -> "hashlib._Hash":
        hasher = hashlib.sha256()
        while block := os.read(self._file, BLOCK):
            hasher.update(block)
        return hasher

    @property
    def end(self) -> int:
        """How many bytes there are, durable or not."""
        return self.upload.offset + self._unsaved

    def write(self, block: bytes) -> None:
        """Append; the kernel is asked to start writing early, so that the sync at the end is short."""
        with disk_errors():
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self._unsaved += len(block)
        if self.end - self._pushed >= WRITEBACK:
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(self._file, self._pushed, self.end - self._pushed, os.POSIX_FADV_DONTNEED)
            self._pushed = self.end

    def checkpoint(self, block: bytes) -> None:
        """`write`, and every CHECKPOINT bytes what is there is made durable and so told; not the last ones, which are
        told together with their digest."""
        self.write(block)
        if self._unsaved >= CHECKPOINT and self.end != self.upload.length:
            self.save()

    def save(self, **changed: object) -> Upload:
        """Make all that was appended durable, and the state with it, `changed` as said; the new state."""
        with disk_errors():
            os.fsync(self._file)
        upload = structs.replace(self.upload, offset=self.end, **changed)
        self._partials.save(upload)
        self.upload, self._unsaved = upload, 0
        return upload

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
