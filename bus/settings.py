"""Settings of the connection to the broker, and its TLS."""

import ssl
from typing import Annotated

from msgspec import Meta, Struct

from schemas.certificates import parse_pins, pinned_context
from schemas.settings_schema import SECRET


class BrokerSettings(Struct, frozen=True):
    """The address of the broker and the login. Values that are files are paths."""

    url: str = "nats://127.0.0.1:4222"
    """Address of the broker, or several with commas (a cluster). `tls://` asks for TLS."""
    user: str = ""
    """User name at the broker."""
    password: Annotated[str, SECRET] = ""
    """Password of `user`."""
    monitor: str = ""
    """Address of the broker's HTTP monitor, the only place that tells whether writes are synced. One for each server of
    a cluster, with commas. Empty: not used.
    """
    ca: str | None = None
    """File with the authority's certificate that the broker's is checked against. Unset: the system's authorities."""
    pin: str | None = None
    """The public key or certificate to trust, under any name: `sha256:…`, or a PEM file with the certificate."""
    cert: str | None = None
    """File with our own certificate, for mutual TLS."""
    key: str | None = None
    """File with the private key of `cert`."""
    replicas: Annotated[int, Meta(ge=1, le=5)] | None = None
    """How many servers of a cluster keep each stream. Unset: existing streams keep their number, new ones get 1."""


def tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    """Return the context of a connection with TLS; None without TLS. Raises ssl.SSLError, PinInvalid, OSError."""
    if not (settings.ca or settings.pin or settings.cert or "tls://" in settings.url):
        return None
    context = (
        pinned_context(parse_pins(settings.pin)) if settings.pin else ssl.create_default_context(cafile=settings.ca)
    )
    if settings.cert:
        context.load_cert_chain(settings.cert, settings.key)
    return context
