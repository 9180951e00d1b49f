"""Credentials as the edge stores them: API keys with their scopes, and the tokens with which machines join."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from schemas.asset import Digest
from schemas.job import Moment, Token

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


class JoinTokenInvalid(ValueError):
    """The text is not a join token; the message says what to do."""


class JoinToken(Struct, frozen=True, kw_only=True):
    """Everything that a runner needs to join. The owner of the token acts as that host.

    `edge` and `broker` are URLs as the host sees them. `edge_pin`, `broker_pin`: the sha256 of the only certificate to
    trust there; None: the certificates that the machine trusts. `pool`: the host offers only endpoints of this pool.
    `host_token`: the id of the shared token for which the edge gave this one. `leaves_at_end`: the runner tells the
    edge when it ends, and the edge removes the host.
    """

    v: Literal[1] = 1
    host: Token
    edge: str
    broker: str
    user: str
    password: str
    key: str
    edge_pin: Digest | None = None
    broker_pin: Digest | None = None
    pool: Token | None = None
    host_token: Token | None = None
    leaves_at_end: bool = False


class SharedJoinToken(Struct, frozen=True, kw_only=True):
    """A token with which many hosts join: each gives it to the edge and gets a `JoinToken` of its own for it.

    `edge_pin`: the sha256 of the edge's public key, see JoinToken. `prefix`: that of the ids of its hosts.
    """

    v: Literal[2] = 2
    id: Token
    secret: str
    edge: str
    prefix: Token
    edge_pin: Digest | None = None


class JoinRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of a runner to join with a shared token.

    `instance`: a random text that the runner keeps, so that a repeated request gets the same host and takes no other
    use. `host`: the id that the runner wants; without it the edge chooses one.
    """

    token: Token
    secret: Annotated[str, Meta(min_length=16, max_length=128)]
    instance: Annotated[str, Meta(min_length=16, max_length=128)]
    host: Token | None = None


class HostToken(Struct, frozen=True, kw_only=True):
    """A row of HOST_TOKENS, under the id of the token. The secret itself is never stored.

    `uses`: how many hosts may join. `used`: how many have. `keeps_hosts`: its hosts stay enrolled when they end. `by`:
    the id of the key that asked for it.
    """

    id: Token
    secret_sha256: str
    uses: int
    created_at: Moment
    expires_at: Moment
    prefix: Token
    by: str
    pool: Token | None = None
    keeps_hosts: bool = False
    used: int = 0
    revoked_at: Moment | None = None

    def refusal(self, now: datetime) -> str | None:
        """Return the code of the problem for which no further host may join at `now`; None if one may."""
        if self.revoked_at is not None:
            return "join_token_revoked"
        if now >= self.expires_at:
            return "join_token_expired"
        return "join_token_used_up" if self.used >= self.uses else None


class EnrolledHost(Struct, frozen=True, kw_only=True):
    """A row of JOINED, under the id of the host: the hashed password of its broker user, and the id of its API key.

    Earlier releases stored the password itself; an edge replaces it by the hash when it starts. `is_being_removed`:
    the host is being removed, and the broker may still have its account. `host_token`: the id of the shared token with
    which the host joined. `instance_sha256`: of the runner that did. `leaves_at_end`: the edge removes the host when
    its runner ends.
    """

    host: Token
    password: str
    key_id: Token
    at: Moment
    is_being_removed: bool = field(default=False, name="leaving")
    host_token: Token | None = None
    instance_sha256: str | None = None
    leaves_at_end: bool = False


class RelayToken(Struct, frozen=True, kw_only=True):
    """Everything that a relay needs to join. `edge_pin`: see JoinToken."""

    v: Literal[1] = 1
    relay: Token
    edge: str
    key: str
    edge_pin: Digest | None = None


T = TypeVar("T", JoinToken, RelayToken, SharedJoinToken)
_COMMANDS: Mapping[type, str] = {
    JoinToken: "lamplighter hosts add",
    RelayToken: "lamplighter hosts add --relay",
    SharedJoinToken: "lamplighter hosts token",
}


def encode_join_token(token: JoinToken | RelayToken | SharedJoinToken) -> str:
    """Return the token: base64url of JSON, without padding."""
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()


def decode_join_token(token: str) -> JoinToken:
    """Return the content of a host's token. Raises JoinTokenInvalid."""
    return _decode(token, JoinToken)


def decode_any_join_token(token: str) -> JoinToken | SharedJoinToken:
    """Return the content of a host's own token, or of one that many hosts share. Raises JoinTokenInvalid."""
    try:
        return _decode(token, SharedJoinToken)
    except JoinTokenInvalid:
        return decode_join_token(token)


def decode_relay_token(token: str) -> RelayToken:
    """Return the content of a relay's token. Raises JoinTokenInvalid."""
    return _decode(token, RelayToken)


def _decode(token: str, kind: type[T]) -> T:
    text = token.strip()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=kind)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise JoinTokenInvalid(
            f"this is not a join token ({error}): copy the whole line of `{_COMMANDS[kind]}`"
        ) from error
