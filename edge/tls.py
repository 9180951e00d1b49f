"""The certificate that the edge serves to other machines, and the addresses in join tokens.

The operator names a certificate, or the edge creates one and keeps it. A created certificate is EC P-256, valid for ten
years, and signs no other certificate (`ca` is false). Hosts pin its public key, so after a renewal with
another key every host must enroll again.
"""

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bus.secret_files import atomic_write
from bus.server.config import TlsFiles
from edge.hosts.enrollment import AdvertisedAddresses
from edge.settings import EdgeSettings, PublicSettings
from schemas.certificates import CertificateInfo, first_certificate, read_certificate

CERTIFICATE_LIFETIME = timedelta(days=3650)
NOT_BEFORE_SKEW = timedelta(days=1)  # the clock of a host may be behind ours


class CertificateUnusable(Exception):
    """A certificate or its key cannot be used. The message names the setting, the file and what to do, in one line."""


def public_certificate(settings: EdgeSettings, now: datetime) -> TlsFiles | None:
    """Return the certificate to serve: the operator's, or one created once in `data`/tls. None without HTTPS.

    Blocking. Raises CertificateUnusable, and OSError when a new certificate cannot be written.
    """
    public = settings.public
    if public.cert and public.key:
        files = TlsFiles(public.cert, public.key)
        check_key_pair(files, "public.cert", "public.key", "correct cert and key in [public]")
        return files
    if not public.listen:
        return None
    files = load_or_create_certificate(settings.data / "tls", public.names, now)
    remedy = "restore both files, or delete both for a new certificate, with which every host enrolls again"
    check_key_pair(files, "public.cert", "public.key", remedy)
    return files


def check_key_pair(files: TlsFiles, cert_name: str, key_name: str, remedy: str) -> ssl.SSLContext:
    """Return a server context with the certificate and its key. Blocking. Raises CertificateUnusable.

    `cert_name` and `key_name`: the settings that name the files.
    """
    for name, path in zip((cert_name, key_name), files, strict=True):
        _read_pem(path, name, remedy)
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


def _read_pem(path: Path, setting: str, remedy: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not PEM text"
        raise CertificateUnusable(f"{setting} {path} cannot be read ({reason}): {remedy}") from error


def _refuse_password() -> str:
    raise ValueError("the key is encrypted with a password")  # without this, OpenSSL would ask on the terminal


def advertised_addresses(settings: EdgeSettings, tls: TlsFiles | None) -> AdvertisedAddresses | None:
    """Return the addresses and pins for join tokens; None if the address of the edge is unknown.

    Blocking. Raises CertificateUnusable.
    """
    public = settings.public
    if not public.url:
        return None
    broker = public.broker if settings.enrollment.nats_conf_dir else ""
    cert = tls.cert if tls else None
    edge_shown = _pinned_certificate(public, public.url, cert, "public.cert")
    broker_setting = "public.broker_cert" if public.broker_cert else "public.cert"
    broker_shown = _pinned_certificate(public, broker, public.broker_cert or cert, broker_setting)
    return AdvertisedAddresses(
        edge=public.url,
        broker=broker,
        edge_pin=edge_shown and edge_shown.sha256,
        broker_pin=broker_shown and broker_shown.sha256,
        edge_key_pin=edge_shown and edge_shown.key_sha256,
    )


def _pinned_certificate(public: PublicSettings, url: str, cert: Path | None, setting: str) -> CertificateInfo | None:
    if not (public.pin and url.startswith(("https:", "tls:")) and cert):
        return None
    remedy = f"correct {setting.removeprefix('public.')} in [public]"
    pem = _read_pem(cert, setting, remedy)
    try:
        return read_certificate(first_certificate(pem))
    except ValueError as error:
        raise CertificateUnusable(f"{setting} {cert} is not a certificate as PEM: {remedy}") from error


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
