"""The encryption of a backup: what was written is read, from any place, and nothing else is accepted."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from lamplighter.cli.backup_archive import (
    CHUNK_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    DecryptingReader,
    EncryptedDataDamaged,
    EncryptingWriter,
    KeyFileUnusable,
    read_key_file,
)

SECRET = b"a secret of many characters"
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]


def sealed(plain: bytes, secret: bytes = SECRET) -> bytes:
    raw = io.BytesIO()
    writer = EncryptingWriter(raw, secret)
    for start in range(0, len(plain), 100_000):
        writer.write(plain[start : start + 100_000])
    writer.finish()
    return raw.getvalue()


def opened(data: bytes, secret: bytes = SECRET) -> bytes:
    return DecryptingReader(io.BytesIO(data), secret).read()


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(size: int):
    plain = os.urandom(size)
    data = sealed(plain)
    assert opened(data) == plain
    chunks = max(1, -(-size // CHUNK_BYTES))
    assert len(data) == HEADER_BYTES + size + chunks * TAG_BYTES
    assert size < 16 or plain[:16] not in data


def test_any_place_can_be_read():
    plain = os.urandom(2 * CHUNK_BYTES + 10)
    reader = DecryptingReader(io.BytesIO(sealed(plain)), SECRET)
    for start, size in ((CHUNK_BYTES - 5, 10), (0, 3), (2 * CHUNK_BYTES, 100), (len(plain), 1)):
        assert reader.seek(start) == start
        assert reader.read(size) == plain[start : start + size]
    assert reader.seek(-10, io.SEEK_END) == len(plain) - 10
    assert reader.read() == plain[-10:]


def test_a_zip_is_written_without_seeking_and_read_back():
    raw = io.BytesIO()
    writer = EncryptingWriter(raw, SECRET)
    content = os.urandom(CHUNK_BYTES * 2)
    with zipfile.ZipFile(writer, "w") as archive, archive.open("one", "w", force_zip64=True) as member:
        member.write(content)
    writer.finish()
    with zipfile.ZipFile(DecryptingReader(io.BytesIO(raw.getvalue()), SECRET)) as archive:
        assert archive.read("one") == content


def test_a_wrong_key_is_distinguished_from_a_damaged_file():
    with pytest.raises(KeyFileUnusable, match="another key"):
        opened(sealed(b"content"), b"another secret, as long as that")


STEP = CHUNK_BYTES + TAG_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[:-TAG_BYTES],
        lambda data: data[: HEADER_BYTES + STEP],  # cut between two chunks
        lambda data: data[:HEADER_BYTES],
        lambda data: data[: HEADER_BYTES + STEP + TAG_BYTES - 1],
        lambda data: data + b"\0",
        lambda data: data[: HEADER_BYTES + 9] + bytes([data[HEADER_BYTES + 9] ^ 1]) + data[HEADER_BYTES + 10 :],
        lambda data: data[:HEADER_BYTES] + data[HEADER_BYTES + STEP :] + data[HEADER_BYTES : HEADER_BYTES + STEP],
        lambda data: data[:HEADER_BYTES] + data[HEADER_BYTES + STEP :],  # the first chunk is missing
    ],
    ids=["cut", "no tag", "a chunk less", "no chunk", "a piece of a tag", "longer", "a bit", "moved", "the first gone"],
)
def test_a_changed_file_is_not_decrypted(change):
    data = change(sealed(os.urandom(2 * CHUNK_BYTES)))
    with pytest.raises(EncryptedDataDamaged):
        opened(data)


def test_a_header_that_was_cut_is_damage():
    with pytest.raises(EncryptedDataDamaged):
        opened(sealed(b"")[: HEADER_BYTES - 1])


def test_each_file_has_a_key_of_its_own():
    assert sealed(b"the same") != sealed(b"the same")


@pytest.mark.parametrize(("content", "said"), [(b"short\n", "shorter than 16"), (None, "cannot be read")])
def test_a_key_file_that_protects_nothing_is_refused(tmp_path: Path, content: bytes | None, said: str):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(KeyFileUnusable, match=said):
        read_key_file(file)


def test_a_key_file_may_end_with_a_new_line(tmp_path: Path):
    (tmp_path / "key").write_bytes(SECRET + b"\r\n")
    assert read_key_file(tmp_path / "key") == SECRET
