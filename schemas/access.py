"""API keys and what they may do (PROTOCOLS 1)."""

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from schemas.job import Moment
from schemas.words import Token

_KEY = re.compile(r"lamp_([A-Za-z0-9-]{1,64})_([A-Za-z0-9_-]{16,128})\Z")


class Scope(StrEnum):
    """What a key may do. `admin` implies all but `runner` and `relay`."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ASSETS_READ = "assets:read"
    ASSETS_WRITE = "assets:write"
    HOSTS_READ = "hosts:read"
    POWER = "power"
    RELAY = "relay"
    RUNNER = "runner"
    ADMIN = "admin"


CLIENT_SCOPES = (Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.ASSETS_READ, Scope.ASSETS_WRITE, Scope.HOSTS_READ)

IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.ADMIN: frozenset({*CLIENT_SCOPES, Scope.POWER}),
}


class ApiKey(Struct, frozen=True, kw_only=True):
    """A row of KEYS, under the key's id. The secret itself is never stored.

    `previous_sha256` opens too until `previous_until`. `used_at` is minutes behind. `host`: with the scope runner, the
    host whose jobs the key is for; None: the jobs of all hosts.
    """

    id: Token
    owner: Token
    scopes: tuple[Scope, ...]
    secret_sha256: str
    created_at: Moment
    expires_at: Moment | None = None
    name: str = ""
    language: str | None = None
    previous_sha256: str | None = None
    previous_until: Moment | None = None
    used_at: Moment | None = None
    host: Token | None = None

    def opened_by(self, now: datetime) -> tuple[str, ...]:
        """The digests of the secrets that open it at `now`."""
        if self.previous_sha256 is None or self.previous_until is None or now >= self.previous_until:
            return (self.secret_sha256,)
        return self.secret_sha256, self.previous_sha256

    def allows(self, scope: Scope) -> bool:
        """Whether one of the key's scopes is, or implies, `scope`."""
        return any(own is scope or scope in IMPLIED.get(own, frozenset()) for own in self.scopes)


class Agreed(Struct, frozen=True):
    """A row of AGREED: one thing that all edges of an installation hold to, written once by the first."""

    value: str
    at: Moment


class Credential(NamedTuple):
    """A key as a client sends it."""

    id: str
    secret: str


def parse_key(text: str) -> Credential | None:
    """`lamp_<id>_<secret>` apart, or None when the text is no key. The id of a key holds no underscore."""
    match = _KEY.match(text)
    return Credential(*match.groups()) if match else None


def secret_digest(secret: str) -> str:
    """What KEYS holds of a secret: its sha256. A secret has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()
