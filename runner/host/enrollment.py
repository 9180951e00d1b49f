"""Enrollment of this host: joining an installation with a token, and noticing that the host was removed.

A shared token is exchanged at the edge for one of this host alone. The token names the sha256 of the certificate, or of
its public key, of edge and broker; both certificates are compared with it before a secret is sent. What trusts them
afterwards is in `schemas.certificates`. The token's content is kept for every later start.
"""

import secrets
import socket
import ssl
import time
from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import httpx2
import msgspec
from msgspec.structs import replace

from bus.health import BrokerHealth
from bus.interface import BrokerUnreachable
from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, make_private_folder
from runner.assets.client import AssetClient
from runner.assets.port import EdgeUnavailable
from runner.settings import RunnerSettings
from schemas.backoff import Backoff
from schemas.certificates import PIN_PREFIX, CertificateUnreadable, parse_pins, pinned_context, read_certificate
from schemas.credentials import JoinRequest, JoinToken, SharedJoinToken, decode_any_join_token
from schemas.outbound_rules import bypass_proxies_for_loopback
from schemas.problems import Problem

CONNECT_TIMEOUT_S = 10.0
DEFAULT_PORTS = {"https": 443, "tls": 4222, "nats": 4222}
INFO_LIMIT_BYTES = 64 * 1024


class CertificateMismatch(Exception):
    """The server shows another certificate than expected. The message says what to do, in one line."""


def fetch_certificate(url: str, expected: str) -> str:
    """Return the certificate of the server at `url` (https:// or tls://, the first of several) as PEM. Blocking.

    Raises BrokerUnreachable, and CertificateMismatch when neither its sha256 nor that of its public key is `expected`.
    No secret has been sent by then.
    """
    parts = urlsplit(url.split(",", maxsplit=1)[0])
    address = (parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0))
    try:
        der = _read_peer_certificate(address, greeted=parts.scheme in {"tls", "nats"})
    except OSError as error:  # ssl.SSLError is one
        raise BrokerUnreachable(
            f"{url} does not answer with TLS ({error}): check address, port and firewall"
        ) from error
    try:
        shown = read_certificate(der)
    except CertificateUnreadable as error:
        raise CertificateMismatch(f"{url} shows no certificate ({error}): check the address") from error
    if not any(compare_digest(found, expected) for found in (shown.sha256, shown.key_sha256)):
        raise CertificateMismatch(
            f"{url} shows the certificate {shown.sha256[:16]}…, the token names {expected[:16]}…: "
            "it was renewed, or another machine intercepts the connection; get a new token with `lamplighter hosts add`"
        )
    return ssl.DER_cert_to_PEM_cert(der)


def _read_peer_certificate(address: tuple[str, int], *, greeted: bool) -> bytes:
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE  # the caller compares the fingerprint
    with socket.create_connection(address, timeout=CONNECT_TIMEOUT_S) as plain:
        if greeted:
            _skip_nats_info(plain)
        with unchecked.wrap_socket(plain, server_hostname=address[0]) as secured:
            return secured.getpeercert(binary_form=True) or b""


def _skip_nats_info(plain: socket.socket) -> None:
    """Read the one line, INFO, that a broker sends before TLS. Byte by byte: what follows belongs to TLS."""
    for _ in range(INFO_LIMIT_BYTES):
        byte = plain.recv(1)
        if byte == b"\n":
            return
        if not byte:
            break
    raise ConnectionError("the server closed the connection before it sent INFO")


JOIN_PATH = "/v1/host-tokens/join"
JOIN_TIMEOUT_S = 60.0  # an edge adds a host within seconds, but a thousand pilots may join at the same time
RETRY_LIMIT_S = 120.0
RETRY_BACKOFF = Backoff(1.0, 15.0)


class JoinRefused(Exception):
    """The edge lets this host not join. The message says why and what to do."""


class RetryClock(NamedTuple):
    """The clock of the retries, in seconds, as a parameter for tests."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def request_enrollment(
    shared: SharedJoinToken,
    request: JoinRequest,
    clock: RetryClock = RetryClock(),  # noqa: B008 - a constant
) -> JoinToken:
    """Return the credentials of this host. Blocking; tries again for RETRY_LIMIT_S while the edge is away or busy.

    Also while another runner is online under the wanted id: it may be one that was killed a moment ago. Raises
    JoinRefused, EdgeUnavailable.
    """
    verify = pinned_context(parse_pins(PIN_PREFIX + shared.edge_pin)) if shared.edge_pin else True
    ends, tries = clock.monotonic() + RETRY_LIMIT_S, 0
    with httpx2.Client(
        base_url=shared.edge, timeout=JOIN_TIMEOUT_S, verify=verify, mounts=bypass_proxies_for_loopback(shared.edge)
    ) as client:
        while True:
            try:
                return _request_once(client, request)
            except (_Busy, EdgeUnavailable) as error:
                wait_s = RETRY_BACKOFF.delay_s(tries)
                if clock.monotonic() + wait_s > ends:
                    raise (JoinRefused(str(error)) if isinstance(error, _Busy) else error) from error
            clock.sleep(wait_s)
            tries += 1


class _Busy(Exception):
    """The wanted id is in use at this moment."""


def _request_once(client: httpx2.Client, request: JoinRequest) -> JoinToken:
    try:
        answer = client.post(JOIN_PATH, content=msgspec.json.encode(request))
    except httpx2.HTTPError as error:
        raise EdgeUnavailable(
            f"{client.base_url} does not answer ({error}): check address, port and firewall"
        ) from error
    try:
        if answer.is_success:
            return msgspec.json.decode(answer.content, type=JoinToken)
        problem = msgspec.json.decode(answer.content, type=Problem)
    except msgspec.DecodeError as error:
        raise EdgeUnavailable(
            f"{client.base_url} answers HTTP {answer.status_code}, not as an edge does: check the address"
        ) from error
    if answer.is_server_error and problem.code != "not_set_up":
        raise EdgeUnavailable(problem.detail)
    if problem.code == "conflict":
        raise _Busy(problem.detail)
    raise JoinRefused(problem.detail)


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
