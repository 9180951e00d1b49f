"""Enrollment of a second machine: the token that `hosts add` prints, and the row that the edge stores."""

import base64
import binascii
from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct, field

from schemas.asset import Digest
from schemas.ids import Token
from schemas.job import Moment


class JoinTokenInvalid(ValueError):
    """The text is not a join token; the message says what to do."""


class JoinToken(Struct, frozen=True, kw_only=True):
    """Everything that a runner needs to join. The owner of the token acts as that host.

    `edge` and `broker` are URLs as the host sees them. `edge_pin`, `broker_pin`: the sha256 of the only certificate to
    trust there; None: the certificates that the machine trusts.
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


class EnrolledHost(Struct, frozen=True, kw_only=True):
    """A row of JOINED, under the id of the host: the hashed password of its broker user, and the id of its API key.

    Earlier releases stored the password itself; an edge replaces it by the hash when it starts. `is_being_removed`:
    the host is being removed, and the broker may still have its account.
    """

    host: Token
    password: str
    key_id: Token
    at: Moment
    is_being_removed: bool = field(default=False, name="leaving")


class RelayToken(Struct, frozen=True, kw_only=True):
    """Everything that a relay needs to join. `edge_pin`: see JoinToken."""

    v: Literal[1] = 1
    relay: Token
    edge: str
    key: str
    edge_pin: Digest | None = None


T = TypeVar("T", JoinToken, RelayToken)
_COMMANDS: Mapping[type, str] = {JoinToken: "lamplighter hosts add", RelayToken: "lamplighter hosts add --relay"}


def encode_join_token(token: JoinToken | RelayToken) -> str:
    """Return the token: base64url of JSON, without padding."""
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()


def decode_join_token(token: str) -> JoinToken:
    """Return the content of a host's token. Raises JoinTokenInvalid."""
    return _decode(token, JoinToken)


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
