"""The way in from other machines: the certificate they meet, and what a host that joins is told of us."""

from datetime import datetime
from pathlib import Path

from bus.pins import fingerprint
from bus.users import Tls
from edge.certificates import provide
from edge.services.joining import Welcome
from edge.settings import EdgeSettings, PublicSettings


def certificate(settings: EdgeSettings, now: datetime) -> Tls | None:
    """The certificate to serve with: the owner's, else one that is made once, in `data`/tls; None: not asked for."""
    public = settings.public
    if public.cert and public.key:
        return Tls(public.cert, public.key)
    return provide(settings.data / "tls", public.names, now) if public.listen else None


def welcome(settings: EdgeSettings, tls: Tls | None) -> Welcome | None:
    """What tokens say of us; None: hosts cannot join. Blocking; OSError when a certificate cannot be read."""
    public = settings.public
    if not (public.url and public.broker and settings.joining.folder):
        return None
    edge_pin = _pin(public, public.url, tls.cert if tls else None)
    broker_pin = _pin(public, public.broker, public.broker_cert or (tls.cert if tls else None))
    return Welcome(edge=public.url, broker=public.broker, edge_pin=edge_pin, broker_pin=broker_pin)


def _pin(public: PublicSettings, url: str, cert: Path | None) -> str | None:
    secured = url.startswith(("https:", "tls:"))
    return fingerprint(cert.read_text()) if public.pin and secured and cert else None
