"""`--FIELD VALUE` read by a schema, local files and their digests."""

import hashlib
import os
from pathlib import Path

import click
import pytest

from lamplighter.cli import jobs
from lamplighter.files import DigestCache, find_local_files

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "steps": {"type": "integer"},
        "seconds": {"type": "number"},
        "loud": {"type": "boolean"},
        "box": {"type": "array"},
        "in_file": {"type": "string", "format": "asset"},
    },
    "additionalProperties": False,
}


def test_values_are_read_by_their_type(tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(b"x")
    words = ["--text", "hi", "--steps=3", "--seconds", "0.5", "--loud", "yes", "--box", "[1,2]", "--in-file", str(file)]
    assert jobs.parse_inputs("echo", words, SCHEMA) == {
        "text": "hi",
        "steps": 3,
        "seconds": 0.5,
        "loud": True,
        "box": [1, 2],
        "in_file": file,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "many"], "of the type integer"),
        (["--seconds", "nan"], "of the type number"),
        (["--box", "{}"], "of the type array"),
        (["--text", "\udcff"], "of the type string"),
        (["--loud", "perhaps"], "of the type boolean"),
        (["--in_file", "/no/such/file"], "the file does not exist"),
        (["--nothing", "1"], "it takes --text, --steps"),
        (["alone"], "has no field"),
        (["--text"], "has no value"),
    ],
)
def test_mistakes_are_named(words, said):
    with pytest.raises(click.UsageError, match=said):
        jobs.parse_inputs("echo", words, SCHEMA)


def test_a_body_is_an_object():
    with pytest.raises(click.UsageError, match="of the type object"):
        jobs.parse_value("body", "[1]", {"type": "object"})


def test_a_digest_is_remembered_until_the_file_changes(tmp_path):
    file, cache = tmp_path / "a", DigestCache(tmp_path / "cache" / "digests.json")
    file.write_bytes(b"one")
    read: list[int] = []
    assert cache.digest(file, read.append) == cache.digest(file, read.append) == hashlib.sha256(b"one").hexdigest()
    assert read == [3]
    file.write_bytes(b"other")
    os.utime(file, ns=(1, 1))
    assert cache.digest(file, read.append) == hashlib.sha256(b"other").hexdigest()


def test_a_damaged_cache_is_an_empty_one(tmp_path):
    (tmp_path / "digests.json").write_text("{")
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert DigestCache(tmp_path / "digests.json").digest(file) == hashlib.sha256(b"one").hexdigest()


def test_only_texts_that_name_a_file_are_files(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"")
    given = {"a": str(file), "b": "no file", "c": 5, "d": file, "e": "nul\0", "f": "x" * 5000, "g": Path("gone.mp4")}
    assert find_local_files(given) == {"a": file, "d": file, "g": Path("gone.mp4")}
