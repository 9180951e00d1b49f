"""The certificate that the edge serves to other machines, and the addresses in join tokens.

The operator names a certificate, or the edge creates one and keeps it. A created certificate is EC P-256, valid for ten
years, and signs no other certificate (`ca` is false). Hosts pin its exact bytes, so after a renewal every host must
enroll again.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bus.secret_files import atomic_write
from bus.server.config import TlsFiles
from bus.tls_pinning import compute_fingerprint
from edge.hosts.enrollment import AdvertisedAddresses
from edge.settings import EdgeSettings, PublicSettings

CERTIFICATE_LIFETIME = timedelta(days=3650)
NOT_BEFORE_SKEW = timedelta(days=1)  # the clock of a host may be behind ours


def public_certificate(settings: EdgeSettings, now: datetime) -> TlsFiles | None:
    """Return the certificate to serve: the operator's, or one created once in `data`/tls. None without HTTPS."""
    public = settings.public
    if public.cert and public.key:
        return TlsFiles(public.cert, public.key)
    return load_or_create_certificate(settings.data / "tls", public.names, now) if public.listen else None


def advertised_addresses(settings: EdgeSettings, tls: TlsFiles | None) -> AdvertisedAddresses | None:
    """Return the addresses and pins for join tokens; None if hosts cannot join.

    Blocking. Raises OSError when a certificate cannot be read.
    """
    public = settings.public
    if not (public.url and public.broker and settings.enrollment.nats_conf_dir):
        return None
    edge_pin = _certificate_pin(public, public.url, tls.cert if tls else None)
    broker_pin = _certificate_pin(public, public.broker, public.broker_cert or (tls.cert if tls else None))
    return AdvertisedAddresses(edge=public.url, broker=public.broker, edge_pin=edge_pin, broker_pin=broker_pin)


def _certificate_pin(public: PublicSettings, url: str, cert: Path | None) -> str | None:
    uses_tls = url.startswith(("https:", "tls:"))
    return compute_fingerprint(cert.read_text()) if public.pin and uses_tls and cert else None


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
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*pkcs8), certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
