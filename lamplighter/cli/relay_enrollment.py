"""The token of `relay --join`, kept in the relay's data folder for later starts."""

from pathlib import Path

import msgspec
from msgspec.structs import replace

from bus.secret_files import atomic_write, make_private_folder
from lamplighter.cli.relay_client import RelaySettings, RelayTarget
from schemas.certificates import PIN_PREFIX
from schemas.enrollment import RelayToken, decode_relay_token

ENROLLMENT_FILE = "relay.json"


class RelayEnrollmentUnreadable(Exception):
    """The kept token cannot be used; the message says what to do."""


def join_relay(settings: RelaySettings, token: str) -> None:
    """Keep the token's content with mode 0600. Blocking. Raises JoinTokenInvalid, OSError."""
    invitation = decode_relay_token(token)
    make_private_folder(settings.data)
    atomic_write(settings.data / ENROLLMENT_FILE, msgspec.json.encode(invitation))


def apply_relay_enrollment(settings: RelaySettings) -> RelaySettings:
    """Return `settings` with the kept address, key and pin, unless `[relay]` names an edge. Blocking.

    Raises RelayEnrollmentUnreadable.
    """
    file: Path = settings.data / ENROLLMENT_FILE
    if settings.relay.urls or not file.exists():
        return settings
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=RelayToken)
    except (OSError, msgspec.DecodeError) as error:
        raise RelayEnrollmentUnreadable(f"{file} cannot be read ({error}): join again with a new token") from error
    pin = f"{PIN_PREFIX}{kept.edge_pin}" if kept.edge_pin else None
    return replace(settings, relay=RelayTarget(urls=(kept.edge,), key=kept.key, pin=pin))
