"""Assets: files named by their sha256, the references of owners to them, and safe file names."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct, field

# A "$" at the end of the pattern would allow a trailing newline.
DIGEST_PATTERN = r"^[0-9a-f]{64}(?![\s\S])"
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN, description="sha256 in 64 lower-case hex digits")]
DIGEST_SCHEME = "sha256:"
NAME_LIMIT_BYTES = 100
BINARY_MEDIA_TYPE = "application/octet-stream"

_DIGEST = re.compile(DIGEST_PATTERN)
# Characters with a meaning for Windows and shells; "/" and "\" have been split at before.
_SPECIAL = re.compile(r'[<>:"|?*]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)

# RFC 9110, section 8.3.1, in visible ASCII.
_TYPE = re.compile(r"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}(\s*;[\x20-\x7e]{0,120})?\Z", re.ASCII)
_EMPTY_TYPES = {BINARY_MEDIA_TYPE, "application/x-www-form-urlencoded", "multipart/form-data"}

# Not the machine's /etc/mime.types: the answer must not depend on where the edge runs. HTML and SVG are left out on
# purpose: a client's file must never be shown as a page of the edge's own origin.
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".json": "application/json",
    ".txt": "text/plain",
    ".log": "text/plain",
    ".srt": "text/plain",
    ".csv": "text/csv",
    ".pdf": "application/pdf",
    ".zip": "application/zip",
}


class InvalidDigest(ValueError):
    """The text is not `sha256:` and 64 lower-case hex digits."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text[:80]!r} names no asset: give sha256: and 64 lower-case hex digits")


class AssetReference(Struct, frozen=True):
    """An owner's reference to a file, stored in ASSETS at `reference_key`."""

    name: str  # as `safe_name` made it
    bytes: int
    media_type: str
    created_at: Annotated[datetime, Meta(tz=True)] = field(name="created")
    last_used_at: Annotated[datetime, Meta(tz=True)] = field(
        name="touched"
    )  # the last upload or submit that named it; retention counts from here


class AssetField(NamedTuple):
    """One place in a job's input that names a file."""

    path: str  # "$.clips[0].video", as jsonschema writes paths
    name: str  # the nearest property: "video"
    value: str  # what the client gave: `sha256:…`, a URL, or something the caller refuses


def is_digest(text: str) -> bool:
    """Return whether `text` is 64 lower-case hex digits."""
    return _DIGEST.match(text) is not None


def parse_digest(text: str) -> Digest:
    """Return the digest in `sha256:<hex>`. Raises InvalidDigest."""
    digest = text.removeprefix(DIGEST_SCHEME)
    if digest == text or not is_digest(digest):
        raise InvalidDigest(text)
    return digest


def reference_key(owner: str, sha256: Digest) -> str:
    """Return the key in ASSETS. An owner sees only keys that begin with its own token."""
    return f"{owner}.{sha256}"


def asset_fields(
    schema: Mapping[str, object], given: object, spend: Callable[[int], None] = lambda _: None
) -> list[AssetField]:
    """Return every string of the input where the schema says `"format": "asset"`, in the order of the schema.

    Follows properties, items, additionalProperties and allOf/anyOf/oneOf, but not `$ref`. The validation reports values
    of another type. `spend` is called with the number of steps before they are taken, and may raise.
    """
    return list(dict.fromkeys(_walk_asset_fields(schema, given, "$", "", spend)))


def _walk_asset_fields(
    schema: object, given: object, path: str, name: str, spend: Callable[[int], None]
) -> Iterator[AssetField]:
    if not isinstance(schema, dict):
        return
    spend(1)
    if schema.get("format") == "asset" and isinstance(given, str):
        yield AssetField(path, name, given)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for choice in schema.get(keyword, ()):
            yield from _walk_asset_fields(choice, given, path, name, spend)
    if isinstance(given, dict):
        yield from _walk_object(schema, given, path, spend)
    elif isinstance(given, list) and "items" in schema:
        spend(len(given))
        for index, item in enumerate(given):
            yield from _walk_asset_fields(schema["items"], item, f"{path}[{index}]", name, spend)


def _walk_object(
    schema: Mapping[str, object], given: Mapping[str, object], path: str, spend: Callable[[int], None]
) -> Iterator[AssetField]:
    spend(len(given))
    properties = schema.get("properties", {})
    known = properties if isinstance(properties, dict) else {}
    ordered = [key for key in known if key in given] + [key for key in given if key not in known]
    for key in ordered:
        if not isinstance(given[key], (str, list, dict)):
            continue  # a number, say, has no files
        yield from _walk_asset_fields(
            known.get(key, schema.get("additionalProperties")), given[key], f"{path}.{key}", key, spend
        )


def replace_at_paths(given: Any, paths: Collection[str], old: str, new: str, path: str = "$") -> Any:
    """Return the value with `new` for every `old` at one of `paths`, which are written as in `asset_fields`."""
    if isinstance(given, dict):
        return {key: replace_at_paths(value, paths, old, new, f"{path}.{key}") for key, value in given.items()}
    if isinstance(given, list):
        return [replace_at_paths(item, paths, old, new, f"{path}[{index}]") for index, item in enumerate(given)]
    return new if given == old and path in paths else given


def safe_name(name: str, fallback: str = "file") -> str:
    """Return a name that is one plain file in any folder: at most 100 bytes of UTF-8, with its extension.

    Characters of every script stay. Folders, control and format characters (they can reverse text), characters with a
    meaning for Windows or a shell, and leading dots and dashes are removed or replaced.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    visible = "".join(" " if c.isspace() else c for c in last if c.isspace() or unicodedata.category(c)[0] != "C")
    plain = _SPECIAL.sub("_", visible).strip(" .").lstrip("-. ")
    if not plain:
        return fallback
    return _shorten_name(f"_{plain}" if _DEVICE.match(plain) else plain)


def _shorten_name(name: str) -> str:
    if len(name.encode()) <= NAME_LIMIT_BYTES:
        return name
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix.encode()) <= NAME_LIMIT_BYTES // 4 else ""
    room = NAME_LIMIT_BYTES - len(suffix.encode())
    stem = name.removesuffix(suffix).encode()[:room].decode(errors="ignore").rstrip(" .")
    return stem + suffix


def choose_media_type(declared: str | None, name: str) -> str:
    """Return the media type that a client declared; if it declared none or only a form's type, that of the name.

    `curl --data-binary` and forms declare types that say nothing about the file. The result may stand in a header.
    """
    kind = (declared or "").strip()
    known = _TYPE.match(kind) and kind.partition(";")[0].strip().lower() not in _EMPTY_TYPES
    return kind if known else guess_media_type(name)


def guess_media_type(name: str) -> str:
    """Return the media type for the extension of `name`; `application/octet-stream` for an unknown one."""
    return MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), BINARY_MEDIA_TYPE)
