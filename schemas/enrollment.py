"""How a second machine joins: the one line that `hosts add` prints, and what the edge keeps of it (DESIGN 6)."""

import base64
import binascii
from typing import Literal

import msgspec
from msgspec import Struct, field

from schemas.asset import Digest
from schemas.ids import Token
from schemas.job import Moment


class JoinTokenInvalid(ValueError):
    """The text is no join token; the message says what to do."""


class JoinToken(Struct, frozen=True, kw_only=True):
    """Everything a runner needs to come in, as the token carries it: whoever has it is that host.

    `edge` and `broker` are URLs as the host sees them. `edge_pin`, `broker_pin`: sha256 of the one certificate that is
    to be trusted there; None: whatever the machine trusts.
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
    """A row of JOINED, under the host's id: the broker user's password as bcrypt hash, the id of the asset key.

    Earlier releases wrote the password itself. An edge puts the hash in its place when it starts.
    `leaving`: it is being put out, and the broker may not have heard of that yet.
    """

    host: Token
    password: str
    key_id: Token
    at: Moment
    is_being_removed: bool = field(default=False, name="leaving")


def encode_join_token(invitation: JoinToken) -> str:
    """The token: base64url of JSON, without padding."""
    return base64.urlsafe_b64encode(msgspec.json.encode(invitation)).rstrip(b"=").decode()


def decode_join_token(token: str) -> JoinToken:
    """The invitation in a token. Raises TokenInvalid."""
    text = token.strip()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=JoinToken)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise JoinTokenInvalid(
            f"this is no join token ({error}): copy the whole line of `lamplighter hosts add`"
        ) from error
