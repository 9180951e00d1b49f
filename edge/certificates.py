"""The certificate that other machines meet here: the owner's, or one made once and kept.

A made one is its own authority for nobody else (`ca` false), EC P-256, and lives ten years: hosts trust its very bytes,
so to renew it is to let every host join anew.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bus.private import write_private
from bus.users import Tls

LIVES = timedelta(days=3650)
SKEW = timedelta(days=1)  # a host whose clock is behind must not wait for it to begin


def provide(folder: Path, names: Sequence[str], now: datetime) -> Tls:
    """The certificate and key in `folder`, made for `names` (host names and addresses) if there are none. Blocking."""
    files = Tls(folder / "cert.pem", folder / "key.pem")
    if not files.cert.exists() or not files.key.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key, certificate = _made(names, now)
        write_private(files.key, key)
        write_private(files.cert, certificate)
    return files


def _made(names: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lamplighter")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIVES)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*pkcs8), certificate.public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
