"""Enrollment of this host: joining an installation with a token, and noticing that the host was removed.

The certificates of edge and broker are compared with the token's pins. The token's content is kept for every later
start.
"""

import secrets
from pathlib import Path

import anyio
import msgspec
from msgspec.structs import replace

from bus.health import BrokerHealth
from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, make_private_folder
from bus.tls_pinning import fetch_certificate
from runner.assets.client import AssetClient
from runner.assets.port import EdgeUnavailable
from runner.host.shared_join import request_enrollment
from runner.settings import RunnerSettings
from schemas.enrollment import JoinRequest, JoinToken, SharedJoinToken, decode_any_join_token

ENROLLMENT_FILE = "joined.json"
JOIN_FAILED_FILE = "join_failed.txt"
INSTANCE_FILE = "join_instance.txt"
EDGE_PIN, BROKER_PIN = "edge.pem", "broker.pem"


class EnrollmentUnreadable(Exception):
    """The kept enrollment cannot be used; the message says what to do."""


class JoinNotCompleted(Exception):
    """An earlier `join` failed, and no later one succeeded; the message says what to do."""


def join(settings: RunnerSettings, token: str) -> None:
    """Keep the token's content in the data folder with mode 0600, replacing an earlier one. Blocking.

    A token that is kept already changes nothing: the service of a container has it at every start, also while the edge
    is away. With a shared token, every start asks the edge again, which gives the same runner the same host.

    Raises JoinTokenInvalid, CertificateMismatch, BrokerUnreachable, JoinRefused, EdgeUnavailable. Then only the reason
    is kept, so that a later start without a token does not run as a host of its own.
    """
    make_private_folder(settings.data, TRAVERSE_ONLY_MODE)
    try:
        invitation = decode_any_join_token(token)
        if isinstance(invitation, SharedJoinToken):
            invitation = _join_with_shared_token(settings, invitation)
        _keep_enrollment(settings, invitation)
    except Exception as error:
        if not is_enrolled(settings):
            atomic_write(settings.data / JOIN_FAILED_FILE, str(error).encode())
        raise
    (settings.data / JOIN_FAILED_FILE).unlink(missing_ok=True)


def _join_with_shared_token(settings: RunnerSettings, shared: SharedJoinToken) -> JoinToken:
    """Return the token of this host, for which the edge takes the shared one. Raises JoinRefused, EdgeUnavailable.

    While the edge is away, a host that has joined with the same token before goes on with what it kept.
    """
    instance_file = settings.data / INSTANCE_FILE
    if not instance_file.exists():
        atomic_write(instance_file, secrets.token_urlsafe(24).encode())
    wanted = settings.host if settings.host != RunnerSettings().host else None
    request = JoinRequest(token=shared.id, secret=shared.secret, instance=instance_file.read_text(), host=wanted)
    try:
        return request_enrollment(shared, request)
    except EdgeUnavailable:
        kept = _read_kept(settings)
        if kept is None or kept.host_token != shared.id:
            raise
        return kept


def _read_kept(settings: RunnerSettings) -> JoinToken | None:
    try:
        return msgspec.json.decode((settings.data / ENROLLMENT_FILE).read_bytes(), type=JoinToken)
    except (OSError, msgspec.DecodeError):
        return None


def _keep_enrollment(settings: RunnerSettings, invitation: JoinToken) -> None:
    kept = settings.data / ENROLLMENT_FILE
    if _read_kept(settings) == invitation:
        return
    certificates = {
        name: fetch_certificate(url, pin)
        for name, url, pin in (
            (EDGE_PIN, invitation.edge, invitation.edge_pin),
            (BROKER_PIN, invitation.broker, invitation.broker_pin),
        )
        if pin is not None
    }
    for name, certificate in certificates.items():
        atomic_write(settings.data / name, certificate)
    atomic_write(kept, msgspec.json.encode(invitation))


def forget_enrollment(settings: RunnerSettings) -> None:
    """Delete what `join` kept: the edge has removed this host."""
    for name in (ENROLLMENT_FILE, EDGE_PIN, BROKER_PIN, INSTANCE_FILE):
        (settings.data / name).unlink(missing_ok=True)


def leaves_at_end(settings: RunnerSettings) -> bool:
    """Return whether the edge removes this host when its runner ends."""
    kept = _read_kept(settings)
    return kept is not None and kept.leaves_at_end


def is_enrolled(settings: RunnerSettings) -> bool:
    """Return whether this data folder belongs to a host that joined with a token."""
    return (settings.data / ENROLLMENT_FILE).exists()


def apply_enrollment(settings: RunnerSettings) -> RunnerSettings:
    """Return `settings` with the kept host, broker and edge; unchanged without an enrollment.

    Raises EnrollmentUnreadable, and JoinNotCompleted after a failed `join`.
    """
    if not is_enrolled(settings):
        _raise_if_join_failed(settings.data / JOIN_FAILED_FILE)
        return settings
    file = settings.data / ENROLLMENT_FILE
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=JoinToken)
    except (OSError, msgspec.DecodeError) as error:
        raise EnrollmentUnreadable(f"{file} cannot be read ({error}): join again with a new token") from error
    return replace(
        settings,
        host=kept.host,
        pool=kept.pool or settings.pool,
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


def _raise_if_join_failed(file: Path) -> None:
    if file.exists():
        reason = file.read_text(encoding="utf-8", errors="replace")
        raise JoinNotCompleted(
            f"this host was to join an installation, and that failed ({reason}): run `lamplighter runner --join TOKEN` "
            f"again, or remove {file} to start without joining"
        )


def _pin_path(file: Path, pin: str | None) -> str | None:
    return str(file) if pin is not None else None


REMOVAL_CHECK_INTERVAL_S = 0.5


class HostRemoved(Exception):
    """This host was removed; the message says what to do."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host} was removed from its installation, so broker and edge refuse it: "
            f"to join again it needs a new token (`lamplighter hosts add {host}` there, `runner --join` here)"
        )


async def wait_until_removed(broker: BrokerHealth, edge: AssetClient) -> None:
    """Return when the broker has dropped us and the edge does not know our key.

    One alone is not a proof: a broker may be away, or may refuse everybody while it is set up again.
    """
    while True:
        await anyio.sleep(REMOVAL_CHECK_INTERVAL_S)
        if broker.is_connected:
            continue
        try:
            if not await edge.is_key_valid():
                return
        except EdgeUnavailable:
            continue
