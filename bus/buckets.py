"""The small buckets of one type each (DESIGN 3), as data: what `Bus` offers as tables."""

from typing import NamedTuple

from schemas.host import PRESENCE_TTL_S
from schemas.lease import LEASE_TTL_S

DELIVERED_DAYS = 30


class Bucket(NamedTuple):
    """A bucket and how many revisions of a key it keeps, for how many seconds (None: for ever)."""

    name: str
    history: int = 1
    ttl_s: float | None = None

    @property
    def stream(self) -> str:
        """The stream that a key-value bucket is made of."""
        return f"KV_{self.name}"


HOSTS = Bucket("HOSTS", ttl_s=PRESENCE_TTL_S)
OFFERS = Bucket("OFFERS")
POWER = Bucket("POWER", history=64)
KEYS = Bucket("KEYS")
ASSETS = Bucket("ASSETS")
TOMBSTONES = Bucket("TOMBSTONES")
AGREED = Bucket("AGREED")
HOOKS = Bucket("HOOKS")
DELIVERED = Bucket("DELIVERED", ttl_s=DELIVERED_DAYS * 86_400)
LEASES = Bucket("LEASES", ttl_s=LEASE_TTL_S)
JOINED = Bucket("JOINED")

BUCKETS = (HOSTS, OFFERS, POWER, KEYS, ASSETS, TOMBSTONES, AGREED, HOOKS, DELIVERED, LEASES, JOINED)
