"""Where the broker is and who we are there."""

from typing import Annotated

from msgspec import Meta, Struct


class BrokerSettings(Struct, frozen=True):
    """`url`: one, or several with commas (a cluster); `tls://` asks for TLS, checked against `ca` (a file) if given.

    `monitor`: the broker's HTTP monitor, the only place that tells whether writes are synced; of a cluster each
    server's, with commas; empty: not asked. `cert` and `key`: files, for mutual TLS. `pin`: a file with the one
    certificate to trust, under whatever name. `replicas`: on so many servers of a cluster every stream is kept; unset,
    on as many as it is (1 where it is new), so that what says nothing of it changes nothing.
    """

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: str = ""
    monitor: str = ""
    ca: str | None = None
    pin: str | None = None
    cert: str | None = None
    key: str | None = None
    replicas: Annotated[int, Meta(ge=1, le=5)] | None = None
