"""Unfinished uploads, in a folder of one edge, or shared so that they continue at another edge. Blocking.

`UploadStateStore`: acknowledged bytes survive a crash and a power cut.

    <owner>.<id>.json    the state, replaced atomically
    <owner>.<id>.part    the bytes, durable up to the state's `offset`

After a power cut the bytes beyond `offset` may be anything. They are truncated before more bytes are appended.

`SharedUploadStateStore`: below `uploads/` of the shared store:

    <owner>/<id>/created      the upload as it was created
    <owner>/<id>/length       its length, if the client named it later
    <owner>/<id>/at-<offset>  the bytes from this offset on: less than 2 × PART_BYTES
    <owner>/<id>/done         the digest of the asset that it became; its bytes are deleted then

Each object is created once and never changed. So no lock is needed: of two edges that write from the same offset, one
creates the part, and the other raises UploadChanged. The offset of the upload is the end of the last part.

The folder of UploadStateStore holds a working copy of the bytes that this edge has seen: the digest needs them all,
and so does the asset. An edge that takes over reads the parts that it lacks.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct, field, structs

from bus.secret_files import fsync_folder
from edge.store.file_io import WRITEBACK_BYTES, create_durable_folder, map_disk_errors
from edge.store.port import BLOCK_BYTES, SharedObject, SharedObjects, StoreBroken, UploadChanged, UploadRemoved
from schemas.asset import Digest
from schemas.job import Moment, Token, is_token

CHECKPOINT_BYTES = 64 * 1024 * 1024  # at most so many bytes of one request are sent again after a crash

_SUFFIXES = _STATE_SUFFIX, _DATA_SUFFIX = (".json", ".part")


class Upload(Struct, frozen=True, kw_only=True):
    """The state of one upload.

    `offset`: number of durable bytes. `length`: None until the client names it. `metadata`: as the client wrote it.
    `expected`: the digest that the client named. `final_sha256`: the digest of the complete bytes.
    `is_stored`: the upload has become an asset.
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
    final_sha256: Digest | None = field(default=None, name="whole")
    is_stored: bool = field(default=False, name="kept")

    @property
    def key(self) -> "UploadKey":
        """Owner and id of the upload, as `UploadStateStore` expects them."""
        return UploadKey(self.owner, self.id)


class UploadKey(NamedTuple):
    """Owner and id of an upload. Both are tokens, so a dot separates them in a file name."""

    owner: Token
    id: Token


class UploadStateStore:
    """The folder of unfinished uploads. Keys consist of tokens, because they become part of a path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with map_disk_errors():
            create_durable_folder(folder)

    def load(self, key: UploadKey) -> Upload | None:
        """Return the state, or None if the upload does not exist. Raises StoreError."""
        with map_disk_errors():
            try:
                return msgspec.json.decode(self._path(key, _STATE_SUFFIX).read_bytes(), type=Upload)
            except FileNotFoundError:
                return None
            except msgspec.DecodeError as error:
                raise StoreBroken(f"the state of upload {key.id} cannot be read ({error}): start it again") from error

    def create(self, upload: Upload) -> None:
        """Create the file for the bytes and save the state. Raises StoreError."""
        with map_disk_errors():
            self.data_path(upload.key).touch(mode=0o600, exist_ok=False)
        self.save(upload)

    @property
    def is_shared(self) -> bool:
        """Return whether another edge may change an upload."""
        return False

    @property
    def checkpoint_bytes(self) -> int:
        """At most so many bytes of one request are sent again after a crash."""
        return CHECKPOINT_BYTES

    def open_data(self, upload: Upload) -> int:
        """Open the file that holds the bytes up to the offset, and no others. Return its descriptor."""
        with map_disk_errors():
            file = os.open(self.data_path(upload.key), os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(file, upload.offset)
        return file

    def append(self, file: int, before: Upload, after: Upload) -> None:
        """Make the bytes that were appended to `file` durable, then the state `after`. Raises StoreError."""
        del before
        with map_disk_errors():
            os.fsync(file)
        self.save(after)

    def save(self, upload: Upload) -> None:
        """Make the state durable. The bytes up to its offset must be durable already. Raises StoreError."""
        with map_disk_errors():
            path = self._path(upload.key, _STATE_SUFFIX)
            new = path.with_suffix(".new")
            with new.open("wb") as file:
                file.write(msgspec.json.encode(upload))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            fsync_folder(self._folder)

    def data_path(self, key: UploadKey) -> Path:
        """Return the path of the file that holds the bytes."""
        return self._path(key, _DATA_SUFFIX)

    def _path(self, key: UploadKey, suffix: str) -> Path:
        if not (is_token(key.owner) and is_token(key.id)):
            raise ValueError(f"{key} is not an upload key")
        return self._folder / f"{key.owner}.{key.id}{suffix}"

    def delete_data(self, key: UploadKey) -> None:
        """Delete the bytes of an upload that became an asset. The state stays, so that the client can still read it."""
        with map_disk_errors():
            self.data_path(key).unlink(missing_ok=True)

    def remove(self, key: UploadKey) -> None:
        """Delete the state, then the bytes: after a crash in between, the sweep removes bytes without a state."""
        self.remove_state(key)
        with map_disk_errors():
            self.data_path(key).unlink(missing_ok=True)

    def remove_state(self, key: UploadKey) -> None:
        """Delete the state in this folder, and leave the bytes."""
        with map_disk_errors():
            self._path(key, _STATE_SUFFIX).unlink(missing_ok=True)

    def count_unfinished(self, owner: Token) -> int:
        """Count the owner's uploads that have not become assets."""
        with map_disk_errors():
            return sum(1 for _ in self._folder.glob(f"{owner}.*{_DATA_SUFFIX}"))

    def pending_bytes(self, owner: Token, growing: Mapping[UploadKey, int]) -> int:
        """Sum the length (or else the offset) of the owner's unfinished uploads; `growing` has precedence over both."""
        with map_disk_errors():
            places = list(self._folder.glob(f"{owner}.*{_DATA_SUFFIX}"))
        uploads = [self.load(UploadKey(*place.stem.split("."))) for place in places]
        return sum(growing.get(one.key, one.length or one.offset) for one in uploads if one is not None)

    def list_keys(self, owner: Token | None = None) -> list[UploadKey]:
        """List all uploads (of `owner`), including bytes that a crash left without a state."""
        with map_disk_errors():
            found = {path.stem.partition(".")[::2] for path in self._folder.iterdir() if path.suffix in _SUFFIXES}
        return sorted(UploadKey(*names) for names in found if owner in {None, names[0]})


class UploadAppender:
    """Append bytes to an upload and hash them. `write` and `hasher.update` may run in two threads at once.

    `hasher`: of the bytes up to the offset; None if this process has not seen them, then they are read again.
    `upload`: the state as last saved. Raises StoreError.
    """

    def __init__(self, states: UploadStateStore, upload: Upload, hasher: "hashlib._Hash | None") -> None:
        self._states = states
        self.upload = upload
        self._undurable_bytes = 0
        self._written_back = upload.offset
        self._file = states.open_data(upload)
        with map_disk_errors():
            os.lseek(self._file, 0, os.SEEK_SET)
            self.hasher = hasher.copy() if hasher else self._hash_existing()
            os.lseek(self._file, upload.offset, os.SEEK_SET)

    def _hash_existing(self) -> "hashlib._Hash":
        hasher = hashlib.sha256()
        while block := os.read(self._file, BLOCK_BYTES):
            hasher.update(block)
        return hasher

    @property
    def end_offset(self) -> int:
        """Number of bytes, durable or not."""
        return self.upload.offset + self._undurable_bytes

    def write(self, block: bytes) -> None:
        """Append `block`. Start write-back every WRITEBACK_BYTES, so that the fsync at the end is short."""
        with map_disk_errors():
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self._undurable_bytes += len(block)
        if self.end_offset - self._written_back >= WRITEBACK_BYTES:
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(
                    self._file, self._written_back, self.end_offset - self._written_back, os.POSIX_FADV_DONTNEED
                )
            self._written_back = self.end_offset

    def write_with_checkpoint(self, block: bytes) -> None:
        """Append `block`; save the state at each checkpoint. The caller saves the last bytes with their digest."""
        self.write(block)
        if self._undurable_bytes >= self._states.checkpoint_bytes and self.end_offset != self.upload.length:
            self.save()

    def save(self, **changed: object) -> Upload:
        """Make all appended bytes and the state durable, with the fields in `changed`; return the new state."""
        upload = structs.replace(self.upload, offset=self.end_offset, **changed)
        self._states.append(self._file, self.upload, upload)
        self.upload, self._undurable_bytes = upload, 0
        return upload

    def close(self) -> None:
        """Close the file; bytes that were not saved are truncated at the next open."""
        os.close(self._file)


PART_BYTES = 8 * 1024 * 1024  # a part is in memory while it is sent

_CREATED, _LENGTH, _DONE = "created", "length", "done"


class SharedUploadStateStore(UploadStateStore):
    """The unfinished uploads of all edges. `ttl`: an upload expires so long after its newest object."""

    def __init__(self, folder: Path, objects: SharedObjects, ttl: timedelta) -> None:
        super().__init__(folder)
        self._objects = objects
        self._ttl = ttl
        self._created: dict[UploadKey, Upload] = {}  # as created, so that a request needs one listing
        self._same_up_to: dict[UploadKey, int] = {}  # so many bytes of the working copy are those of the parts

    @property
    def is_shared(self) -> bool:
        return True

    @property
    def checkpoint_bytes(self) -> int:
        return PART_BYTES

    def load(self, key: UploadKey) -> Upload | None:
        entries = self._objects.list(_folder(key))
        upload = self._assemble(key, {_last_name(entry): entry for entry in entries})
        if upload is None:
            return self._share_local(key)
        if upload.is_stored:
            super().delete_data(key)
        return upload

    def _assemble(self, key: UploadKey, entries: Mapping[str, SharedObject]) -> Upload | None:
        if _CREATED not in entries:
            return None
        try:
            created = self._created.get(key) or self._decode(key)
            length = int(self._objects.read(f"{_folder(key)}/{_LENGTH}")) if _LENGTH in entries else created.length
            digest = self._objects.read(f"{_folder(key)}/{_DONE}").decode() if _DONE in entries else None
        except KeyError:  # another edge has removed the upload meanwhile
            return None
        self._created[key] = created
        offset = 0
        while (part := entries.get(_part_name(offset))) is not None:
            offset += part.bytes
        return structs.replace(
            created,
            expires=max(entry.modified for entry in entries.values()) + self._ttl,
            length=length,
            offset=(length or 0) if digest else offset,
            final_sha256=digest,
            is_stored=digest is not None,
        )

    def _decode(self, key: UploadKey) -> Upload:
        try:
            return msgspec.json.decode(self._objects.read(f"{_folder(key)}/{_CREATED}"), type=Upload)
        except msgspec.DecodeError as error:
            raise StoreBroken(f"the state of upload {key.id} cannot be read ({error}): start it again") from error

    def _share_local(self, key: UploadKey) -> Upload | None:
        """Share an upload that this edge began when it did not share its uploads; None without one."""
        upload = super().load(key)
        if upload is None or upload.is_stored:
            return upload
        self.create(structs.replace(upload, offset=0, final_sha256=None))
        with map_disk_errors():
            file = os.open(self.data_path(key), os.O_RDONLY)
        try:
            self.append(file, structs.replace(upload, offset=0), upload)
        finally:
            os.close(file)
        super().remove_state(key)
        return structs.replace(upload, final_sha256=None)

    def create(self, upload: Upload) -> None:
        # Ids are random: an object that exists is our own, from a request whose answer was lost.
        self._objects.create(f"{_folder(upload.key)}/{_CREATED}", msgspec.json.encode(upload))
        self._created[upload.key] = upload

    def save(self, upload: Upload) -> None:
        """Share what is new in `upload`, apart from its bytes. Raises UploadChanged, StoreError."""
        folder = _folder(upload.key)
        if upload.is_stored and upload.final_sha256 is not None:
            self._objects.create(f"{folder}/{_DONE}", upload.final_sha256.encode())
            return
        created = self._created.get(upload.key)
        if (
            upload.length is not None
            and (created is None or created.length is None)
            and not self._objects.create(f"{folder}/{_LENGTH}", str(upload.length).encode())
        ):
            raise UploadChanged

    def open_data(self, upload: Upload) -> int:
        """Open the working copy, and add the bytes that other edges received."""
        with map_disk_errors():
            file = os.open(self.data_path(upload.key), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._add_missing(file, upload)
        except BaseException:
            os.close(file)
            raise
        return file

    def _add_missing(self, file: int, upload: Upload) -> None:
        with map_disk_errors():
            have = self._same_up_to.get(upload.key, 0)
            if not have <= min(upload.offset, os.fstat(file).st_size):
                have = 0  # only whole parts can be read again
            os.ftruncate(file, have)
        while have < upload.offset:
            try:
                part = self._objects.read(f"{_folder(upload.key)}/{_part_name(have)}")
            except KeyError:
                raise UploadChanged from None
            with map_disk_errors():
                have += os.pwrite(file, part, have)
            self._same_up_to[upload.key] = have

    def append(self, file: int, before: Upload, after: Upload) -> None:
        """Share the bytes between the two offsets. Raises UploadChanged if another edge has added bytes there."""
        at = before.offset
        while (rest := after.offset - at) > 0:
            with map_disk_errors():
                body = os.pread(file, rest if rest < 2 * PART_BYTES else PART_BYTES, at)
            name = f"{_folder(after.key)}/{_part_name(at)}"
            if not self._objects.create(name, body) and not self._is_part(name, body):
                raise UploadChanged
            at += len(body)
            self._same_up_to[after.key] = at
        if before.offset < after.offset and not self._is_created(after.key):
            self.remove(after.key)
            raise UploadRemoved

    def _is_part(self, name: str, body: bytes) -> bool:
        """Return whether the part is `body`: the answer to its creation was lost, and the request was sent again."""
        try:
            return self._objects.read(name) == body
        except KeyError:
            return False

    def _is_created(self, key: UploadKey) -> bool:
        return any(_last_name(entry) == _CREATED for entry in self._objects.list(_folder(key)))

    def delete_data(self, key: UploadKey) -> None:
        super().delete_data(key)
        self._same_up_to.pop(key, None)
        entries = self._objects.list(_folder(key))
        self._objects.delete([entry.name for entry in entries if _last_name(entry).startswith("at-")])

    def remove(self, key: UploadKey) -> None:
        """Delete the upload at all edges. `created` goes first: parts without it are not an upload."""
        self._created.pop(key, None)
        self._same_up_to.pop(key, None)
        entries = self._objects.list(_folder(key))
        ordered = sorted(entries, key=lambda entry: _last_name(entry) != _CREATED)
        for entry in ordered[:1]:
            self._objects.delete([entry.name])
        self._objects.delete([entry.name for entry in ordered[1:]])
        super().remove(key)

    def count_unfinished(self, owner: Token) -> int:
        return len(self._unfinished(owner))

    def pending_bytes(self, owner: Token, growing: Mapping[UploadKey, int]) -> int:
        uploads = self._unfinished(owner)
        return sum(growing.get(one.key, one.length or one.offset) for one in uploads)

    def _unfinished(self, owner: Token) -> Sequence[Upload]:
        uploads = [self._assemble(key, entries) for key, entries in self._list_entries(owner).items()]
        return [one for one in uploads if one is not None and not one.is_stored]

    def list_keys(self, owner: Token | None = None) -> list[UploadKey]:
        shared = self._list_entries(owner)
        return sorted({*shared, *super().list_keys(owner)})

    def _list_entries(self, owner: Token | None) -> Mapping[UploadKey, Mapping[str, SharedObject]]:
        found: dict[UploadKey, dict[str, SharedObject]] = {}
        for entry in self._objects.list(owner or ""):
            names = entry.name.split("/")
            if len(names) == 3 and all(map(is_token, names[:2])):
                found.setdefault(UploadKey(names[0], names[1]), {})[names[2]] = entry
        return found


def _folder(key: UploadKey) -> str:
    if not (is_token(key.owner) and is_token(key.id)):
        raise ValueError(f"{key} is not an upload key")
    return f"{key.owner}/{key.id}"


def _last_name(entry: SharedObject) -> str:
    return entry.name.rpartition("/")[2]


def _part_name(offset: int) -> str:
    return f"at-{offset:020d}"
