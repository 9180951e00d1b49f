"""API keys: their scopes, how they are stored, and how a client sends them."""

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from schemas.ids import Token
from schemas.job import Moment

_CREDENTIAL = re.compile(r"lamp_([A-Za-z0-9-]{1,64})_([A-Za-z0-9_-]{16,128})\Z")


class Scope(StrEnum):
    """A permission of a key. `admin` implies all but `runner` and `relay`."""

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

IMPLIED_SCOPES: dict[Scope, frozenset[Scope]] = {
    Scope.ADMIN: frozenset({*CLIENT_SCOPES, Scope.POWER}),
}


class ApiKey(Struct, frozen=True, kw_only=True):
    """A row of KEYS, under the id of the key. The secret itself is never stored.

    `previous_sha256` is accepted too until `previous_until`. `used_at` lags by minutes. `host`: for a key with the
    scope runner, the host whose jobs it is for; None: the jobs of all hosts.
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

    def accepted_digests(self, now: datetime) -> tuple[str, ...]:
        """Return the digests of the secrets that are accepted at `now`."""
        if self.previous_sha256 is None or self.previous_until is None or now >= self.previous_until:
            return (self.secret_sha256,)
        return self.secret_sha256, self.previous_sha256

    def allows(self, scope: Scope) -> bool:
        """Return whether one of the scopes is, or implies, `scope`."""
        return any(own is scope or scope in IMPLIED_SCOPES.get(own, frozenset()) for own in self.scopes)


class Credential(NamedTuple):
    """The two parts of a key that a client sends, `lamp_<id>_<secret>`."""

    id: str
    secret: str


def parse_credential(text: str) -> Credential | None:
    """Split `lamp_<id>_<secret>`; None when the text is not a key. The id of a key has no underscore."""
    match = _CREDENTIAL.match(text)
    return Credential(*match.groups()) if match else None


def hash_secret(secret: str) -> str:
    """Return the sha256 of a secret, as KEYS stores it. A secret has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()
