"""Coming in with a token: who answers is compared with its pins, and what it gives is kept for every later start."""

from pathlib import Path

import msgspec
from msgspec.structs import replace

from bus.pins import fetch
from bus.private import PASSAGE, private_folder, write_private
from runner.settings import RunnerSettings
from schemas.joining import Invitation, decode

KEPT = "joined.json"
EDGE_PIN, BROKER_PIN = "edge.pem", "broker.pem"


class CannotJoin(Exception):
    """What was kept of an earlier joining cannot be used; the message says what to do."""


def join(settings: RunnerSettings, token: str) -> None:
    """Keep the token's content in the data folder, 0600, over that of an earlier one. Blocking.

    Raises TokenInvalid, bus.pins.WrongCertificate, bus.port.Unreachable. Nothing is kept then.
    """
    invitation = decode(token)
    met = {
        name: fetch(url, pin)
        for name, url, pin in (
            (EDGE_PIN, invitation.edge, invitation.edge_pin),
            (BROKER_PIN, invitation.broker, invitation.broker_pin),
        )
        if pin is not None
    }
    private_folder(settings.data, PASSAGE)
    for name, certificate in met.items():
        write_private(settings.data / name, certificate)
    write_private(settings.data / KEPT, msgspec.json.encode(invitation))


def has_joined(settings: RunnerSettings) -> bool:
    """Whether this data folder belongs to a host that came in with a token."""
    return (settings.data / KEPT).exists()


def joined(settings: RunnerSettings) -> RunnerSettings:
    """`settings` with what was kept: host, broker and edge. As they are, where nothing was. Raises CannotJoin."""
    if not has_joined(settings):
        return settings
    file = settings.data / KEPT
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=Invitation)
    except (OSError, msgspec.DecodeError) as error:
        raise CannotJoin(f"{file} cannot be read ({error}): join again with a new token") from error
    return replace(
        settings,
        host=kept.host,
        broker=replace(
            settings.broker,
            url=kept.broker,
            user=kept.user,
            password=kept.password,
            pin=_pin(settings.data / BROKER_PIN, kept.broker_pin),
        ),
        edge=replace(settings.edge, url=kept.edge, key=kept.key, pin=_pin(settings.data / EDGE_PIN, kept.edge_pin)),
    )


def _pin(file: Path, asked: str | None) -> str | None:
    return str(file) if asked is not None else None
