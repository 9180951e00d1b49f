"""What all sockets of this edge share besides its services."""

from msgspec import Struct

from edge.facades.gateway.origins import Origins
from edge.parts import Parts
from edge.services.clock import Clock


class Hall(Struct, frozen=True):
    """Given to every command."""

    parts: Parts
    origins: Origins
    now: Clock
