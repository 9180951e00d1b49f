"""Pauses that an operator sets: of an endpoint, and the maintenance of a host."""

from msgspec import Struct

from schemas.job import Moment


class Pause(Struct, frozen=True):
    """A row of PAUSES, while it exists. `by`: the owner of the key that asked for it."""

    since: Moment
    by: str = ""


def endpoint_pause_key(endpoint: str) -> str:
    """Return the key in PAUSES of a paused endpoint."""
    return f"endpoint.{endpoint}"


def maintenance_key(host: str) -> str:
    """Return the key in PAUSES of a host that is in maintenance."""
    return f"host.{host}"
