"""Signed URLs: an owner, a path and an expiry time, signed with the installation's secret. They need no API key.

A URL that was made for an API key carries the key's id and stops working when that key is revoked. URLs in webhook
deliveries, URLs of the keyless port and URLs of earlier releases carry no id: they work until they expire.
"""

import base64
import hmac
from collections.abc import Mapping
from datetime import timedelta
from math import ceil
from typing import Annotated, NamedTuple, Protocol
from urllib.parse import quote, urlencode

from msgspec import Meta, Struct

from edge.core.clock import Clock
from schemas.auth import ApiKey, Scope
from schemas.ids import is_token

SIGNATURE_PARAMETER = "signature"
NO_KEY = "signing"  # the key id of requests by a URL that carries none
_KEY_PARAMETER = "for"
SIGNED_URL_PARAMETERS = frozenset({"expires", _KEY_PARAMETER, SIGNATURE_PARAMETER})  # and the owner
_EXPIRY_STEPS = 4
# The scopes of a request by a signed URL, valid only for the path that was signed.
_SIGNED_URL_SCOPES = (Scope.JOBS_READ, Scope.ASSETS_READ)


class UrlSettings(Struct, frozen=True):
    """The `[urls]` section: URLs that work without a key."""

    ttl_s: Annotated[float, Meta(gt=0)] = 3600.0
    """The minimum time for which the file URLs of a job work."""
    base: str = ""
    """Prefix of these URLs, as in `https://edge.example`. Empty: they are paths on the edge that answered."""


class SignUrl(Protocol):
    """A function that makes a signed URL for `path` of `owner`."""

    def __call__(self, owner: str, path: str, key_id: str | None) -> str:
        """Return the URL. `path` is already percent-encoded. `key_id`: the key whose revocation ends the URL."""
        ...


class PurposeHmac:
    """HMAC-SHA256 with the installation's secret, separated by purpose."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._secret = secret
        self._purpose = purpose

    def sign(self, *texts: str) -> str:
        """Return 43 characters of base64url. No text may contain a line feed: it is the separator."""
        message = "\n".join((self._purpose, *texts)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._secret, message, "sha256")).rstrip(b"=").decode()

    def verify(self, signature: str, *texts: str) -> bool:
        """Return whether `signature` belongs to `texts`; the comparison takes constant time."""
        return hmac.compare_digest(signature.encode(), self.sign(*texts).encode())


class _UrlClaim(NamedTuple):
    owner: str
    expires: int
    key_id: str | None

    def signed_texts(self, path: str) -> tuple[str, ...]:
        """Return the texts that the signature covers."""
        key_ids = () if self.key_id is None else (self.key_id,)
        return path, self.owner, str(self.expires), *key_ids


class UrlSigner:
    """Makes and verifies signed URLs. All edges share the secret, so each verifies the URLs of the others."""

    def __init__(self, secret: bytes, clock: Clock, settings: UrlSettings) -> None:
        self._hmac = PurposeHmac(secret, "url")
        self._clock = clock
        self._settings = settings

    def sign_url(self, owner: str, path: str, key_id: str | None = None) -> str:
        """Return `path` with owner, expiry, key id and signature as its query. It works for `ttl_s` to 1.25 `ttl_s`.

        The expiry is rounded up, so that a page that polls the job every second gets the same URL each time and its
        `<video>` keeps playing.
        """
        step = self._settings.ttl_s / _EXPIRY_STEPS
        expires = ceil(ceil((self._clock().timestamp() + self._settings.ttl_s) / step) * step)
        signature = self._hmac.sign(*_UrlClaim(owner, expires, key_id).signed_texts(path))
        key = {} if key_id is None else {_KEY_PARAMETER: key_id}
        query = urlencode({"owner": owner, "expires": expires, **key, SIGNATURE_PARAMETER: signature})
        return f"{self._settings.base.rstrip('/')}{path}?{query}"

    def key_for_url(self, path: str, query: Mapping[str, str]) -> ApiKey | None:
        """Return a read-only key for a GET of `path` (decoded), or None if the signature is wrong or has expired.

        The id of the returned key is the id of the key that the URL was made for, or NO_KEY.
        """
        claim = _parse_claim(query)
        now = self._clock()
        if claim is None or claim.expires <= now.timestamp():
            return None
        if not self._hmac.verify(query.get(SIGNATURE_PARAMETER, ""), *claim.signed_texts(quote(path))):
            return None
        ends = now + timedelta(seconds=claim.expires - now.timestamp())
        key_id = claim.key_id or NO_KEY
        return ApiKey(
            id=key_id, owner=claim.owner, scopes=_SIGNED_URL_SCOPES, secret_sha256="", created_at=now, expires_at=ends
        )


def _parse_claim(query: Mapping[str, str]) -> _UrlClaim | None:
    owner, expires = query.get("owner", ""), query.get("expires", "")
    if not is_token(owner) or not (expires.isascii() and expires.isdigit() and len(expires) < 12):
        return None
    key_id = query.get(_KEY_PARAMETER)
    return _UrlClaim(owner, int(expires), key_id) if key_id is None or is_token(key_id) else None
