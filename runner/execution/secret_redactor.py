"""Mask the secrets of a job in everything that it prints: its log, messages and result.

A value is recognized as it is, in JSON, in URLs, in hexadecimal digits, and in base64, also in the middle of a longer
text that was encoded. Any other encoding is not, nor base64 that is wrapped into lines. A value of several lines is
masked line by line too, but each line only as it is and in JSON.
"""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec

from schemas.container_protocol import ErrorLine, MetricLine, OutputStream, ProgressLine
from schemas.job_environment import SECRET_LEAST_BYTES

MASK = "*"  # for each byte, so that offsets in the output stay valid


class SecretRedactor:
    """Masks `values`, as they are and encoded. It keeps the end of each stream between two chunks."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        values = frozenset(filter(_is_long, values))
        lines = frozenset(line for value in values for line in value.splitlines() if _is_long(line))
        found = {form for text in values | lines for form in _printed_forms(text)}
        found |= {form for value in values for form in _encoded_forms(value) if _is_long(form)}
        self._texts = sorted(found, key=len, reverse=True)
        self._forms = [text.encode() for text in self._texts]
        self._longest = max(map(len, self._forms), default=0)
        self._tails: dict[OutputStream, bytes] = {}

    def redact(self, stream: OutputStream, data: bytes) -> bytes:
        """Return the chunk with each value masked, also one that began in the chunk before."""
        if not self._forms:
            return data
        tail = self._tails.pop(stream, b"")
        joined = tail + data
        masked = self._mask(joined)
        if not data.endswith(b"\n"):  # a line that is cut: its next part may complete a value
            self._tails[stream] = joined[1 - self._longest :]
            begun = max(_begun_length(joined, form) for form in self._forms)
            masked[len(masked) - begun :] = MASK.encode() * begun
        return bytes(masked[len(tail) :])

    def _mask(self, data: bytes) -> bytearray:
        masked = bytearray(data)
        for form in self._forms:
            at = data.find(form)
            while at >= 0:  # forms may overlap
                masked[at : at + len(form)] = MASK.encode() * len(form)
                at = data.find(form, at + 1)
        return masked

    def redact_message(self, message: Any) -> Any:
        """Return a message of the job with the values in its texts masked, however they were escaped in its line."""
        if self._texts and isinstance(message, ProgressLine | MetricLine | ErrorLine):
            texts = {name: self.redact_value(value) for name, value in msgspec.structs.asdict(message).items()}
            return msgspec.structs.replace(message, **texts)
        return message

    def redact_value(self, value: Any) -> Any:
        """Return a JSON value with the values of secrets masked in each of its texts."""
        if isinstance(value, str):
            for text in self._texts:
                value = value.replace(text, MASK * len(text))
        elif isinstance(value, dict):
            return {self.redact_value(name): self.redact_value(inner) for name, inner in value.items()}
        elif isinstance(value, list):
            return [self.redact_value(inner) for inner in value]
        return value


def _is_long(text: str) -> bool:
    return len(text.encode()) >= SECRET_LEAST_BYTES


def _printed_forms(text: str) -> Iterable[str]:
    """Return the text as programs print it: as it is, and in JSON, where a slash may be escaped."""
    for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield form
        yield form.replace("/", "\\/")


def _encoded_forms(value: str) -> Iterable[str]:
    """Return the value in the encodings of URLs and HTTP headers."""
    data = value.encode()
    yield from (data.hex(), data.hex().upper())
    for form in (quote(value), quote(value, safe=""), quote_plus(value), quote_plus(value, safe="/")):
        yield form
        yield _lower_escapes(form)
    for before in range(3):  # bytes that stand before the value in its group of three
        for encode in (b64encode, urlsafe_b64encode):
            # The first and the last character also depend on the text around the value.
            whole = encode(bytes(before) + data).decode().rstrip("=")
            last = len(whole) - (1 if (before + len(data)) % 3 else 0)
            yield whole[-(-before * 8 // 6) : last]


def _lower_escapes(quoted: str) -> str:
    """Return the text with `%2f` in place of `%2F`."""
    head, *parts = quoted.split("%")
    return "".join((head, *(f"%{part[:2].lower()}{part[2:]}" for part in parts)))


def _begun_length(data: bytes, form: bytes) -> int:
    """Return how many bytes at the end of `data` are the beginning of `form`."""
    end = data[max(0, len(data) - len(form) + 1) :]
    at = end.find(form[:1])
    while at >= 0 and not form.startswith(end[at:]):
        at = end.find(form[:1], at + 1)
    return len(end) - at if at >= 0 else 0
