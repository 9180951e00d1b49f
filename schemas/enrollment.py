"""Enrollment of other machines: the tokens of `hosts add` and `hosts token`, and the rows that the edge stores."""

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from schemas.asset import Digest
from schemas.ids import Token
from schemas.job import Moment


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
