"""Unfinished uploads that all edges share, so that an upload continues at another edge. Blocking.

Below `uploads/` of the shared store:

    <owner>/<id>/created      the upload as it was created
    <owner>/<id>/length       its length, if the client named it later
    <owner>/<id>/at-<offset>  the bytes from this offset on: less than 2 × PART_BYTES
    <owner>/<id>/done         the digest of the asset that it became; its bytes are deleted then

Each object is created once and never changed. So no lock is needed: of two edges that write from the same offset, one
creates the part, and the other raises UploadChanged. The offset of the upload is the end of the last part.

The folder of UploadStateStore holds a working copy of the bytes that this edge has seen: the digest needs them all, and
so does the asset. An edge that takes over reads the parts that it lacks.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
from msgspec import structs

from edge.store.atomic_write import map_disk_errors
from edge.store.port import SharedObject, SharedObjects, StoreBroken, UploadChanged, UploadRemoved
from edge.store.upload_state import Upload, UploadKey, UploadStateStore
from schemas.ids import Token, is_token

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
