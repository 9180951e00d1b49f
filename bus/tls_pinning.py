"""The certificate of a server that a host joins: its token names the sha256 of the certificate or of its public key.

What trusts it afterwards is in `schemas.certificates`.
"""

import socket
import ssl
from hmac import compare_digest
from urllib.parse import urlsplit

from bus.interface import BrokerUnreachable
from schemas.certificates import CertificateUnreadable, read_certificate

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
