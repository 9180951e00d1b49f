"""Coming in with a token: who answers is compared with its pins, and what it gives is kept for every later start."""

from pathlib import Path

import anyio
import msgspec
from msgspec.structs import replace

from bus.interface import BrokerHealth
from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, make_private_folder
from bus.tls_pinning import fetch_certificate
from runner.assets.client import AssetClient
from runner.assets.port import EdgeUnavailable
from runner.settings import RunnerSettings
from schemas.enrollment import JoinToken, decode_join_token

ENROLLMENT_FILE = "joined.json"
EDGE_PIN, BROKER_PIN = "edge.pem", "broker.pem"


class EnrollmentUnreadable(Exception):
    """What was kept of an earlier joining cannot be used; the message says what to do."""


def join(settings: RunnerSettings, token: str) -> None:
    """Keep the token's content in the data folder, 0600, over that of an earlier one. Blocking.

    Raises TokenInvalid, bus.pins.WrongCertificate, bus.port.Unreachable. Nothing is kept then.
    """
    invitation = decode_join_token(token)
    met = {
        name: fetch_certificate(url, pin)
        for name, url, pin in (
            (EDGE_PIN, invitation.edge, invitation.edge_pin),
            (BROKER_PIN, invitation.broker, invitation.broker_pin),
        )
        if pin is not None
    }
    make_private_folder(settings.data, TRAVERSE_ONLY_MODE)
    for name, certificate in met.items():
        atomic_write(settings.data / name, certificate)
    atomic_write(settings.data / ENROLLMENT_FILE, msgspec.json.encode(invitation))


def is_enrolled(settings: RunnerSettings) -> bool:
    """Whether this data folder belongs to a host that came in with a token."""
    return (settings.data / ENROLLMENT_FILE).exists()


def apply_enrollment(settings: RunnerSettings) -> RunnerSettings:
    """`settings` with what was kept: host, broker and edge. As they are, where nothing was. Raises CannotJoin."""
    if not is_enrolled(settings):
        return settings
    file = settings.data / ENROLLMENT_FILE
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=JoinToken)
    except (OSError, msgspec.DecodeError) as error:
        raise EnrollmentUnreadable(f"{file} cannot be read ({error}): join again with a new token") from error
    return replace(
        settings,
        host=kept.host,
        broker=replace(
            settings.broker,
            url=kept.broker,
            user=kept.user,
            password=kept.password,
            pin=_pin_path(settings.data / BROKER_PIN, kept.broker_pin),
        ),
        edge=replace(
            settings.edge, url=kept.edge, key=kept.key, pin=_pin_path(settings.data / EDGE_PIN, kept.edge_pin)
        ),
    )


def _pin_path(file: Path, asked: str | None) -> str | None:
    return str(file) if asked is not None else None


# MERGED runner/membership.py: Whether a host that joined still is one: when it is removed, broker and edge refuse it
# at once.


REMOVAL_CHECK_INTERVAL_S = 0.5


class HostRemoved(Exception):
    """This host was put out. The message says what to do, in one line."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host} was removed from its installation, broker and edge refuse it: "
            f"to come back it needs a new token (`lamplighter hosts add {host}` there, `runner --join` here)"
        )


async def wait_until_removed(link: BrokerHealth, edge: AssetClient) -> None:
    """Return when the broker has dropped us and the edge, asked why, does not know our key.

    Either alone is no proof: a broker may be away, or refuse everybody while it is set up anew.
    """
    while True:
        await anyio.sleep(REMOVAL_CHECK_INTERVAL_S)
        if link.is_connected:
            continue
        try:
            if not await edge.is_key_valid():
                return
        except EdgeUnavailable:
            continue
