"""Settings of the connection to the broker."""

from typing import Annotated

from msgspec import Meta, Struct


class BrokerSettings(Struct, frozen=True):
    """The address of the broker and the login. Values that are files are paths.

    `url`: one address, or several with commas (a cluster); `tls://` asks for TLS, checked against the file `ca` if
    given. `monitor`: the HTTP monitor, the only place that tells whether writes are synced; one for each server of a
    cluster, with commas; empty: not used. `cert` and `key`: files for mutual TLS. `pin`: the public key or certificate
    to trust, under any name: `sha256:…`, or a PEM file with the certificate. `replicas`: the number of servers of a
    cluster that keep each stream. Unset, existing streams keep their number and new ones get 1.
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
