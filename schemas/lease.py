"""Work that one edge at a time should do, although two would do no harm."""

from msgspec import Struct

from schemas.job import Moment

LEASE_TTL_S = 15.0


class Lease(Struct, frozen=True):
    """A row of LEASES: it goes by itself LEASE_TTL_S after its holder last wrote it."""

    holder: str
    at: Moment
