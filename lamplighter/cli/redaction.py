"""Remove secrets from lines of a log: keys, tokens, passwords, signatures, and the queries of URLs."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct, structs

from bus.settings import BrokerSettings
from schemas.settings_schema import SECRET_MASK, metadata_extra

# Fields of a log line, and parameters and headers, whose values are never shown.
SECRET_FIELDS = frozenset({"key", "password", "secret", "token", "authorization", "cookie", "signature", "ticket"})
_SHORTEST_SECRET_LENGTH = 8  # a shorter setting is a word that may stand in any line

_HEADERS = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|webhook-signature"
_PARAMETERS = "|".join(sorted(SECRET_FIELDS))
# A text that must be in the line, in lower case, so that most lines need no search; the pattern; what replaces it.
_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("lamp_",), re.compile(r"\b(lamp_[A-Za-z0-9-]{1,64}_)[A-Za-z0-9_-]{16,}"), r"\1***"),  # the id of the key stays
    (("lampt_", "lamps_"), re.compile(r"\b(lamp[ts]_)[A-Za-z0-9_.-]+"), r"\1***"),
    (("whsec_",), re.compile(r"\b(whsec_)[A-Za-z0-9+/_=-]+"), r"\1***"),
    (("eyj",), re.compile(r"\beyJ[A-Za-z0-9_-]{16,}(?:\.[A-Za-z0-9_-]+)*"), "***"),  # JSON in base64: join tokens, JWTs
    (("://",), re.compile(r"(://)[^\s/@\"'<>\\]+@"), r"\1***@"),  # the login in a URL
    (("://",), re.compile(r"(://[^\s?\"'<>\\]*\?)[^\s\"'<>\\]+"), r"\1***"),
    (("?",), re.compile(r"(\?)[\w.~%-]+=[^\s\"'<>\\]*"), r"\1***"),  # the query of a path
    (("bearer ",), re.compile(r"\b(bearer )[A-Za-z0-9._~+/=-]+", re.IGNORECASE), r"\1***"),
    (("v1,", "v1a,"), re.compile(r"\b(v1a?,)[A-Za-z0-9+/]{20,}=*"), r"\1***"),  # a signature of Standard Webhooks
    (
        ("authorization", "cookie", "x-api-key", "webhook-signature"),  # as in a request, a dict or a list of pairs
        re.compile(
            rf"\b((?:{_HEADERS})(?:(?:\\?[\"'])?\s*[:=]|\\?[\"'],)\s*(?:b?\\?[\"'])?)[^\"'\n\\]+", re.IGNORECASE
        ),
        r"\1***",
    ),
)
_NAMED_VALUE = re.compile(
    rf"((?:\b|_)(?:{_PARAMETERS})(?:=|\\?[\"']\s*:\s*)(?:\\?[\"'])?)"
    r"(?:(?<=[\"'])[^\"'\\]+|[^\s\"'&,;)}\\]+)",
    re.IGNORECASE,
)
_ENDS_OF_NAME = ("=", '"', "'", "\\")  # one of them follows a name in `_NAMED_VALUE`


class Redactor:
    """Replaces secrets in a text: by their form, and those of `known` wherever they are."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        long = {text for text in known if len(text) >= _SHORTEST_SECRET_LENGTH}
        forms = sorted(long | {json.dumps(text)[1:-1] for text in long}, key=len, reverse=True)  # in a line of JSON
        self._known = tuple(forms)

    def redact(self, text: str) -> str:
        """Return `text` with `***` in place of each secret."""
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, SECRET_MASK)
        lower = text.lower()
        for needed, pattern, replacement in _RULES:
            for part in needed:  # a generator expression takes longer than the whole search
                if part in lower:
                    text = pattern.sub(replacement, text)
                    break
        return _NAMED_VALUE.sub(r"\1***", text) if _has_named_value(lower) else text


def _has_named_value(lower: str) -> bool:
    for name in SECRET_FIELDS:
        if name in lower:  # most lines have a `key_id`, which no value follows
            for end in _ENDS_OF_NAME:
                if f"{name}{end}" in lower:
                    return True
    return False


def mask_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a log line, with `***` as the value of each that is named like a secret."""
    return {name: SECRET_MASK if name in SECRET_FIELDS else value for name, value in event.items()}


def secrets_in(settings: Struct) -> Iterator[str]:
    """Return the values of all settings that are marked as a secret, and the secret paths of the broker's monitors."""
    if isinstance(settings, BrokerSettings):
        yield from (urlsplit(url).path for url in settings.monitor.split(","))
    for field in structs.fields(settings):
        value = getattr(settings, field.name)
        if metadata_extra(field.type).get("secret"):
            yield from _texts_in(value)
        else:
            yield from _secrets_below(value)


def _secrets_below(value: Any) -> Iterator[str]:
    if isinstance(value, Struct):
        yield from secrets_in(value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _secrets_below(one)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, str):
        yield value
