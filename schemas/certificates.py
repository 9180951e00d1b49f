"""X.509 certificates as clients see them: what one contains, and TLS contexts that trust pinned public keys.

A pin is `sha256:` and 64 hex digits: the digest of a public key, in the form that a certificate has it
(SubjectPublicKeyInfo), or of a whole certificate. A pin of the key still fits after a renewal that keeps the key.
Names and dates are not checked: behind a router a machine is reached under names that no certificate contains, and a
server that has the private key of a pinned key is the right one.
"""

import hashlib
import re
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

PIN_PREFIX = "sha256:"
_PIN = re.compile(r"[0-9a-f]{64}")
_PEM_END = "-----END CERTIFICATE-----"
_PEM_BEGIN = "-----BEGIN CERTIFICATE-----"

# Tags of DER (X.690) and object identifiers of names (X.520, section 6), as they are encoded.
_VERSION_TAG, _UTC_TIME_TAG, _BMP_STRING_TAG = 0xA0, 0x17, 0x1E
_NAME_PARTS = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O", b"\x55\x04\x06": "C"}


class PinInvalid(ValueError):
    """The text is not a pin, or names a file without a certificate. The message says what to do."""


class CertificateUnreadable(ValueError):
    """The bytes are not a certificate."""


class CertificateInfo(NamedTuple):
    """The parts of a certificate that errors and `doctor` show. Digests are in hex."""

    subject: str
    issuer: str
    not_after: datetime
    sha256: str
    key_sha256: str

    @property
    def pin(self) -> str:
        """Return the pin of the public key."""
        return PIN_PREFIX + self.key_sha256

    def __str__(self) -> str:
        return (
            f"subject {self.subject}, issuer {self.issuer}, SHA-256 {self.sha256}, "
            f"expires {self.not_after:%Y-%m-%d %H:%M} UTC"
        )


class _Element(NamedTuple):
    """One element of DER: its tag, its content, and both with the length between them."""

    tag: int
    content: bytes
    encoded: bytes


def _read_elements(data: bytes) -> list[_Element]:
    """Return the elements that `data` consists of. Raises IndexError or ValueError for other bytes."""
    found, at = list[_Element](), 0
    while at < len(data):
        length, start = data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, start = int.from_bytes(data[start : start + size]), start + size
        end = start + length
        if end > len(data):
            raise ValueError("an element is longer than what contains it")
        found.append(_Element(data[at], data[start:end], data[at:end]))
        at = end
    return found


def _read_name(name: bytes) -> str:
    """Return a name as `CN=…, O=…`, without characters that could control a terminal."""
    parts = []
    for relative in _read_elements(name):
        for pair in _read_elements(relative.content):
            kind, value = _read_elements(pair.content)
            text = value.content.decode("utf-16-be" if value.tag == _BMP_STRING_TAG else "utf-8", errors="replace")
            if kind.content in _NAME_PARTS:
                parts.append(f"{_NAME_PARTS[kind.content]}={''.join(c if c.isprintable() else '?' for c in text)}")
    return ", ".join(parts) or "without a name"


def _read_time(element: _Element) -> datetime:
    form = "%y%m%d%H%M%SZ" if element.tag == _UTC_TIME_TAG else "%Y%m%d%H%M%SZ"
    return datetime.strptime(element.content.decode(), form).replace(tzinfo=UTC)


def read_certificate(der: bytes) -> CertificateInfo:
    """Return the parts of a certificate in DER (RFC 5280, section 4.1). Raises CertificateUnreadable."""
    try:
        (certificate,) = _read_elements(der)
        fields = _read_elements(_read_elements(certificate.content)[0].content)
        if fields[0].tag == _VERSION_TAG:
            del fields[0]
        _serial, _algorithm, issuer, validity, subject, key = fields[:6]
        return CertificateInfo(
            _read_name(subject.content),
            _read_name(issuer.content),
            _read_time(_read_elements(validity.content)[1]),
            hashlib.sha256(der).hexdigest(),
            hashlib.sha256(key.encoded).hexdigest(),
        )
    except (IndexError, ValueError) as error:  # ValueError includes UnicodeDecodeError
        raise CertificateUnreadable(f"these bytes are not a certificate ({error})") from error


def first_certificate(pem: str) -> bytes:
    """Return the first certificate of a PEM text in DER. Raises CertificateUnreadable."""
    start, end = pem.find(_PEM_BEGIN), pem.find(_PEM_END)
    if not 0 <= start < end:
        raise CertificateUnreadable("the file has no certificate in PEM form")
    try:
        return ssl.PEM_cert_to_DER_cert(pem[start : end + len(_PEM_END)])
    except ValueError as error:
        raise CertificateUnreadable(f"the certificate is not PEM ({error})") from error


def parse_pins(text: str) -> frozenset[str]:
    """Return the digests of `text`: pins with commas between them, or the path of a PEM file, whose key is the pin.

    `openssl x509 -fingerprint` writes a digest with colons, which is taken too. Blocking for a file. Raises PinInvalid.
    """
    names = [name.strip() for name in text.split(",")]
    digests = [_parse_digest(name) for name in names]
    known = [digest for digest in digests if digest is not None]
    if len(known) == len(names):
        return frozenset(known)
    if len(names) > 1 or text.lower().startswith(PIN_PREFIX):
        raise PinInvalid(f"the pin {text!r} is not sha256: with 64 hex digits: copy it again")
    try:
        return frozenset({read_certificate(first_certificate(Path(text).read_text())).key_sha256})
    except (OSError, ValueError) as error:
        why = f"the pin {text!r} is neither sha256: with 64 hex digits nor the file of a certificate"
        raise PinInvalid(f"{why} ({error})") from error


def _parse_digest(name: str) -> str | None:
    digest = name.lower().removeprefix(PIN_PREFIX).replace(":", "")
    return digest if _PIN.fullmatch(digest) else None


class CertificateNotPinned(ssl.SSLCertVerificationError):
    """The server shows a certificate that no pin names; `shown` is that certificate."""

    def __init__(self, shown: CertificateInfo) -> None:
        super().__init__(1, f"the certificate is not the pinned one: {shown}")
        self.shown = shown


class PinnedContext(ssl.SSLContext):
    """A client context that trusts the certificates in `pins`, of which there must be one. Made by `pinned_context`.

    The handshake itself proves that the server has the private key. Each handshake ends with the comparison, before
    the caller can send anything.
    """

    pins: frozenset[str] = frozenset()

    def check_peer(self, der: bytes | None) -> None:
        """Raise CertificateNotPinned unless a pin names this certificate or its key."""
        try:
            shown = read_certificate(der or b"")
        except CertificateUnreadable as error:
            raise ssl.SSLCertVerificationError(1, str(error)) from error
        if not self.pins & {shown.sha256, shown.key_sha256}:
            raise CertificateNotPinned(shown)


class _PinnedObject(ssl.SSLObject):
    """The TLS of asyncio, uvloop and anyio."""

    def do_handshake(self) -> None:
        super().do_handshake()
        _context_of(self).check_peer(self.getpeercert(binary_form=True))


class _PinnedSocket(ssl.SSLSocket):
    """A blocking TLS socket that checks the pin after its handshake."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _context_of(self).check_peer(self.getpeercert(binary_form=True))


def _context_of(connection: Any) -> PinnedContext:
    context: PinnedContext = connection.context
    return context


PinnedContext.sslobject_class = _PinnedObject
PinnedContext.sslsocket_class = _PinnedSocket


def pinned_context(pins: Iterable[str]) -> PinnedContext:
    """Return a client context that trusts the certificates that `pins` name, the result of `parse_pins`."""
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # `check_peer` decides instead
    context.pins = frozenset(pins)
    return context


def authority_context(file: str) -> ssl.SSLContext:
    """Return a client context that trusts the certificates in a PEM file and no others. Blocking. Raises OSError.

    A certificate in the file is trusted even if it is not an authority's. Names and dates are checked.
    """
    Path(file).open("rb").close()  # the error of `load_verify_locations` does not name the file
    context = ssl.create_default_context(cafile=file)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
