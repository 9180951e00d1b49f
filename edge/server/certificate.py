"""The certificate of one TLS server: created or checked at the start, and reloaded when its files change.

A created certificate is EC P-256, valid for ten years, and signs no other certificate (`ca` is false). Hosts pin its
public key, so after a renewal with another key every host must enroll again. A reload needs no restart.
"""

import ipaddress
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bus.secret_files import atomic_write
from bus.server.config import TlsFiles
from schemas.certificates import first_certificate, read_certificate

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2: forward secrecy and no CBC; TLS 1.3 has its own list
RENEWAL_CHECK_INTERVAL_S = 3.0
CERTIFICATE_LIFETIME = timedelta(days=3650)
NOT_BEFORE_SKEW = timedelta(days=1)  # the clock of a host may be behind ours

log = structlog.get_logger()

FileStamps = tuple[tuple[int, int, int], ...] | None  # inode, size and mtime of each file; None: one does not exist


class CertificateUnusable(Exception):
    """A certificate or its key cannot be used. The message names the setting, the file and what to do, in one line."""


class PublicKeyChanged(Exception):
    """The new certificate has another public key than the one that clients pin."""

    def __init__(self) -> None:
        super().__init__(
            "it has another public key than the one that joined hosts pin, so the old one is still served: renew "
            "with the same key, or restart to serve the new one, and join every host again"
        )


def load_or_create_certificate(folder: Path, names: Sequence[str], now: datetime) -> TlsFiles:
    """Return the certificate and key in `folder`, and create them for `names` if they do not exist. Blocking.

    `names`: host names and IP addresses.
    """
    files = TlsFiles(folder / "cert.pem", folder / "key.pem")
    if not files.cert.exists() or not files.key.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key, certificate = _create_certificate(names, now)
        atomic_write(files.key, key)
        atomic_write(files.cert, certificate)
    return files


def _create_certificate(names: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*pkcs8), _sign_certificate(key, names, now)


def _sign_certificate(key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: datetime) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lamplighter")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - NOT_BEFORE_SKEW)
        .not_valid_after(now + CERTIFICATE_LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def check_key_pair(files: TlsFiles, cert_name: str, key_name: str, remedy: str) -> ssl.SSLContext:
    """Return a server context with the certificate and its key. Blocking. Raises CertificateUnusable.

    `cert_name` and `key_name`: the settings that name the files.
    """
    for name, path in zip((cert_name, key_name), files, strict=True):
        read_pem(path, name, remedy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*files, password=_refuse_password)
    except (ssl.SSLError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else error
        raise CertificateUnusable(
            f"{cert_name} {files.cert} and {key_name} {files.key} are not a certificate and its key as PEM ({reason}): "
            f"{remedy}"
        ) from error
    return context


def is_trusted_here(server: ssl.SSLContext, name: str) -> bool:
    """Return whether this machine's authorities signed the certificate of `server` for `name`. Makes a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    served = server.wrap_bio(outgoing, incoming, server_side=True)
    for side in (client, served, client):  # the hello of the client, the server's part, the verdict of the client
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            return False
        return side is client
    return False


def read_pem(path: Path, setting: str, remedy: str) -> str:
    """Return the text of a file that `setting` names. Blocking. Raises CertificateUnusable."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not PEM text"
        raise CertificateUnusable(f"{setting} {path} cannot be read ({reason}): {remedy}") from error


def read_stamps(files: TlsFiles) -> FileStamps:
    """Return what changes when a file is written or replaced. Blocking."""
    try:
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files))
    except OSError:
        return None


def read_key_digest(files: TlsFiles) -> str:
    """Return the sha256 of the certificate's public key. Blocking. Raises OSError, ValueError."""
    return read_certificate(first_certificate(files.cert.read_text())).key_sha256


class ServedCertificate:
    """`context`: the SSL context for new handshakes. Blocking; the constructor raises OSError for unusable files.

    `pinned`: clients trust exactly this public key. A certificate with another key is served only after a restart.
    """

    def __init__(self, files: TlsFiles, *, pinned: bool = False) -> None:
        self._files = files
        self._loaded_stamps = read_stamps(files)
        self.context = self._load_context()
        self._pinned_key = read_key_digest(files) if pinned else None

    def reload_if_changed(self) -> bool:
        """Load a new context if the files changed since the last call. Return whether a new one is served.

        The new context replaces the old one only when certificate and key are loaded and match. Loading into the old
        context would break all handshakes while a program has written one of the two files.
        """
        stamps = read_stamps(self._files)
        if stamps == self._loaded_stamps:
            return False
        self._loaded_stamps = stamps
        try:
            context = self._load_context()
            self._check_key()
        except (OSError, ValueError, PublicKeyChanged) as error:  # OSError includes ssl.SSLError
            log.warning("certificate_reload_failed", cert=str(self._files.cert), error=str(error))
            return False
        self.context = context
        log.info("certificate_reloaded", cert=str(self._files.cert))
        return True

    def _load_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files, password=_refuse_password)
        context.set_ciphers(CIPHERS)
        return context

    def _check_key(self) -> None:
        if self._pinned_key not in {None, read_key_digest(self._files)}:
            raise PublicKeyChanged


def _refuse_password() -> str:
    raise ValueError("the key is encrypted with a password: store it without one")  # OpenSSL would ask on the terminal


async def watch_certificate(certificate: ServedCertificate, on_renewed: Callable[[], Awaitable[None]]) -> None:
    """Reload the certificate whenever its files change, and await `on_renewed` after each reload. Without end."""
    while True:
        await anyio.sleep(RENEWAL_CHECK_INTERVAL_S)
        if await anyio.to_thread.run_sync(certificate.reload_if_changed):
            await on_renewed()
