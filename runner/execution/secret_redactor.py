"""Mask the secrets of a job in everything that it prints: its log, messages and result.

A value that is encoded, for example in base64, is not recognized. A value of several lines is masked line by line too.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from schemas.container_protocol import ErrorLine, MetricLine, OutputStream, ProgressLine
from schemas.job_environment import SECRET_LEAST_BYTES

MASK = "*"  # for each byte, so that offsets in the output stay valid


class SecretRedactor:
    """Masks `values`, as they are and as they stand in JSON. It keeps the end of each stream between two chunks."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        texts = {text for value in values for text in (value, *value.splitlines()) if _is_long(text)}
        self._texts = sorted(texts, key=len, reverse=True)
        self._forms = sorted({form for text in texts for form in _forms(text)}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if self._forms else None
        self._tails: dict[OutputStream, bytes] = {}

    def redact(self, stream: OutputStream, data: bytes) -> bytes:
        """Return the chunk with each value masked, also one that began in the chunk before."""
        if self._pattern is None:
            return data
        tail = self._tails.pop(stream, b"")
        joined = tail + data
        masked = self._mask(joined) if self._pattern.search(joined) else bytearray(joined)
        if not data.endswith(b"\n"):  # a line that is cut: its next part may complete a value
            self._tails[stream] = joined[1 - len(self._forms[0]) :]
            begun = max(_begun_length(joined, form) for form in self._forms)
            masked[len(masked) - begun :] = MASK.encode() * begun
        return bytes(masked[len(tail) :])

    def _mask(self, data: bytes) -> bytearray:
        masked = bytearray(data)
        for form in self._forms:
            at = data.find(form)
            while at >= 0:  # values may overlap
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


def _forms(text: str) -> Iterable[bytes]:
    """Return the text as programs print it: as it is, and in JSON, where a slash may be escaped."""
    for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield form.encode()
        yield form.replace("/", "\\/").encode()


def _begun_length(data: bytes, form: bytes) -> int:
    """Return how many bytes at the end of `data` are the beginning of `form`."""
    for length in range(min(len(form) - 1, len(data)), 0, -1):
        if data.endswith(form[:length]):
            return length
    return 0
