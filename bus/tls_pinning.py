"""Trust one certificate and no other: a host that joins knows the sha256 of the edge's certificate.

Host names are not checked. Behind a router a machine is reached under names that no certificate contains, and the
private key of exactly this certificate is proof enough.
"""

import hashlib
import socket
import ssl
from hmac import compare_digest
from pathlib import Path
from urllib.parse import urlsplit

from bus.interface import BrokerUnreachable

CONNECT_TIMEOUT_S = 10.0
DEFAULT_PORTS = {"https": 443, "tls": 4222, "nats": 4222}
INFO_LIMIT_BYTES = 64 * 1024


class CertificateMismatch(Exception):
    """The server shows another certificate than expected. The message says what to do, in one line."""


def compute_fingerprint(pem: str) -> str:
    """Return the sha256 of a PEM certificate (the first of a chain) in hex."""
    end = "-----END CERTIFICATE-----"
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)].strip())).hexdigest()


def fetch_certificate(url: str, expected: str) -> str:
    """Return the certificate of the server at `url` (https:// or tls://, the first of several) as PEM. Blocking.

    Raises BrokerUnreachable, and CertificateMismatch when its sha256 is not `expected`. No secret has been sent by
    then.
    """
    parts = urlsplit(url.split(",", maxsplit=1)[0])
    address = (parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0))
    try:
        der = _read_peer_certificate(address, greeted=parts.scheme in {"tls", "nats"})
    except OSError as error:  # ssl.SSLError is one
        raise BrokerUnreachable(
            f"{url} does not answer with TLS ({error}): check address, port and firewall"
        ) from error
    found = hashlib.sha256(der).hexdigest()
    if not compare_digest(found, expected):
        raise CertificateMismatch(
            f"{url} shows the certificate {found[:16]}…, the token names {expected[:16]}…: "
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


def create_pinned_ssl_context(pem: Path) -> ssl.SSLContext:
    """Return a client context that trusts exactly the certificate in the file `pem`. Blocking. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= (
        ssl.VERIFY_X509_PARTIAL_CHAIN
    )  # the certificate itself is the trust anchor, whatever signed it
    context.load_verify_locations(cafile=pem)
    return context
