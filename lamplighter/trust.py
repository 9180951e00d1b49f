"""Which certificate of an edge a client trusts, and what an error says about one that is not trusted."""

import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from lamplighter.errors import TrustInvalid
from schemas.certificates import (
    CertificateInfo,
    CertificateNotPinned,
    CertificateUnreadable,
    PinInvalid,
    authority_context,
    first_certificate,
    parse_pins,
    pinned_context,
    read_certificate,
)
from schemas.environment import is_loopback_url

FETCH_TIMEOUT_S = 5.0


def make_ssl_context(url: str, ca: str | None, pin: str | None) -> ssl.SSLContext | None:
    """Return the context for `url`; None: the certificates that this machine trusts. Blocking.

    `ca`: a PEM file with the certificates to trust. `pin`: see `schemas.certificates`. Raises TrustInvalid.
    """
    if not (ca or pin):
        return None
    if ca and pin:
        raise TrustInvalid("both ca and pin are given: give the authority's file, or the pin of the edge's own key")
    if urlsplit(url).scheme not in {"https", "wss"}:
        if is_loopback_url(url):
            return None
        raise TrustInvalid(f"{url} is not encrypted, so ca and pin protect nothing: use the https address of the edge")
    try:
        return pinned_context(parse_pins(pin)) if pin else authority_context(ca or "")
    except PinInvalid as error:
        raise TrustInvalid(str(error)) from error
    except OSError as error:
        raise TrustInvalid(f"the file {ca} cannot be used for ca ({error.strerror or error}): correct it") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def find_verification_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return the failed check of a certificate that caused `error`, if one did."""
    return next((one for one in _causes(error) if isinstance(one, ssl.SSLCertVerificationError)), None)


def explain_refused_certificate(url: str, error: ssl.SSLCertVerificationError) -> str:
    """Return one line: which certificate `url` shows, why it is not trusted, and what to pass. Blocking."""
    shown = error.shown if isinstance(error, CertificateNotPinned) else fetch_certificate(url)
    if shown is None:
        return f"{url} shows a certificate that is not trusted ({error.verify_message}): give ca or pin"
    why = "it is not the pinned one" if isinstance(error, CertificateNotPinned) else error.verify_message
    return (
        f"{url} shows a certificate that is not trusted ({why}): {shown}. If this is your edge's certificate, pass "
        f"--pin {shown.pin} (its public key), or --ca FILE with the certificate of its issuer"
    )


def fetch_certificate(url: str) -> CertificateInfo | None:
    """Return the certificate that the server shows now, unchecked; None if it cannot be read."""
    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or 443)
        pem = ssl.get_server_certificate(address, timeout=FETCH_TIMEOUT_S)
        return read_certificate(first_certificate(pem))
    except (OSError, ValueError, CertificateUnreadable):
        return None
