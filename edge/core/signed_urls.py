"""URLs that stand for themselves: an owner and a path, signed with the installation's secret, until a time.

One that was made for a key names its id, and does not work once that key is revoked. Those in webhook deliveries and
those of the keyless port name no key, and neither do those of earlier releases: they work until their time.
"""

import base64
import hmac
from collections.abc import Mapping
from datetime import timedelta
from math import ceil
from typing import Annotated, NamedTuple, Protocol
from urllib.parse import quote, urlencode

from msgspec import Meta, Struct

from bus.interface import Table
from edge.core.clock import Clock, Entropy
from edge.core.installation import get_or_create_value
from schemas.auth import ApiKey, Scope
from schemas.ids import is_token
from schemas.installation import InstallationConstant

SECRET_BYTES = 32
SIGNATURE_PARAMETER = "signature"
NO_KEY = "signing"  # the id of whoever comes with a URL that names no key
_INSTALLATION_KEY = "signing"  # the row of AGREED
_KEY = "for"  # the parameter with the id of the key
_EXPIRY_STEPS = 4
# What a signed URL's bearer may do, at the one path that was signed.
_SIGNED_URL_SCOPES = (Scope.JOBS_READ, Scope.ASSETS_READ)


class UrlSettings(Struct, frozen=True):
    """`ttl_s`: how long the file URLs in a Job work, at least. `base`: what to put before them, `https://edge.example`;
    without it they are paths of the edge that answered."""

    ttl_s: Annotated[float, Meta(gt=0)] = 3600.0
    base: str = ""


class SignUrl(Protocol):
    """Makes the URL under which an owner's thing at `path` can be fetched."""

    def __call__(self, owner: str, path: str, key_id: str | None) -> str:
        """`path` is percent-encoded already, as `/v1/jobs/…/files/…`. `key_id`: the key that must still be there."""
        ...


async def get_or_create_secret(table: Table[InstallationConstant], entropy: Entropy, clock: Clock) -> bytes:
    """The secret that all edges sign with; made by the first. Raises BusError."""
    return bytes.fromhex(await get_or_create_value(table, _INSTALLATION_KEY, entropy(SECRET_BYTES).hex(), clock))


class PurposeHmac:
    """HMAC-SHA256 under the installation's secret, over texts of one purpose."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._secret = secret
        self._purpose = purpose

    def sign(self, *texts: str) -> str:
        """43 characters of base64url. No text may hold a line feed: it parts them."""
        message = "\n".join((self._purpose, *texts)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._secret, message, "sha256")).rstrip(b"=").decode()

    def verify(self, signature: str, *texts: str) -> bool:
        """Whether `signature` is that of `texts`; compared in constant time."""
        return hmac.compare_digest(signature.encode(), self.sign(*texts).encode())


class _UrlClaim(NamedTuple):
    owner: str
    expires: int
    key_id: str | None

    def signed(self, path: str) -> tuple[str, ...]:
        """What the signature is over."""
        named = () if self.key_id is None else (self.key_id,)
        return path, self.owner, str(self.expires), *named


class UrlSigner:
    """Signs paths and tells whether a request's query was signed here, or by another edge with the same secret."""

    def __init__(self, secret: bytes, clock: Clock, settings: UrlSettings) -> None:
        self._hmac = PurposeHmac(secret, "url")
        self._clock = clock
        self._settings = settings

    def sign_url(self, owner: str, path: str, key_id: str | None = None) -> str:
        """`path` with owner, end, key and signature. It works from `ttl_s` to a quarter longer.

        The end is rounded up, so that a page that asks for the job every second is given the same URL and a `<video>`
        goes on playing.
        """
        step = self._settings.ttl_s / _EXPIRY_STEPS
        expires = ceil(ceil((self._clock().timestamp() + self._settings.ttl_s) / step) * step)
        signature = self._hmac.sign(*_UrlClaim(owner, expires, key_id).signed(path))
        named = {} if key_id is None else {_KEY: key_id}
        query = urlencode({"owner": owner, "expires": expires, **named, SIGNATURE_PARAMETER: signature})
        return f"{self._settings.base.rstrip('/')}{path}?{query}"

    def key_for_url(self, path: str, query: Mapping[str, str]) -> ApiKey | None:
        """Who a GET of `path` (decoded) is made for, as a key that may read; None where the query is not signed for it,
        or no longer. Its id is that of the key that the URL was made for, else NO_KEY."""
        claim = _parse_claim(query)
        now = self._clock()
        if claim is None or claim.expires <= now.timestamp():
            return None
        if not self._hmac.verify(query.get(SIGNATURE_PARAMETER, ""), *claim.signed(quote(path))):
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
    key_id = query.get(_KEY)
    return _UrlClaim(owner, int(expires), key_id) if key_id is None or is_token(key_id) else None
