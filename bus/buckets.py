"""The small buckets of one type each (DESIGN 3), as data: what `Bus` offers as tables."""

from typing import NamedTuple

from schemas.host import PRESENCE_TTL_S
from schemas.lease import LEASE_TTL_S

DELIVERED_DAYS = 30
REPORT_DAYS = 30
AUDIT_DAYS = 400


class Bucket(NamedTuple):
    """A bucket and how many revisions of a key it keeps, for how many seconds (None: for ever).

    `personal`: it holds what clients say of themselves, or a secret of an earlier release, so what a row said before is
    erased when it is written anew.
    What the broker itself lets go, because `history` is full, it leaves on its disk: so such a bucket keeps a few, and
    the edge erases all but the last.
    """

    name: str
    history: int = 1
    ttl_s: float | None = None
    personal: bool = False

    @property
    def stream(self) -> str:
        """The stream that a key-value bucket is made of."""
        return f"KV_{self.name}"


_FEW = 4  # more than a crash between a write and its erasing leaves

HOSTS = Bucket("HOSTS", ttl_s=PRESENCE_TTL_S)
OFFERS = Bucket("OFFERS")
POWER = Bucket("POWER", history=64)
KEYS = Bucket("KEYS", _FEW, personal=True)
ASSETS = Bucket("ASSETS", _FEW, personal=True)
TOMBSTONES = Bucket("TOMBSTONES")
AGREED = Bucket("AGREED")
HOOKS = Bucket("HOOKS", _FEW, personal=True)
DELIVERED = Bucket("DELIVERED", _FEW, DELIVERED_DAYS * 86_400, personal=True)
LEASES = Bucket("LEASES", ttl_s=LEASE_TTL_S)
JOINED = Bucket("JOINED", _FEW, personal=True)
ERASURES = Bucket("ERASURES", ttl_s=REPORT_DAYS * 86_400)
AUDIT = Bucket("AUDIT", ttl_s=AUDIT_DAYS * 86_400)

BUCKETS = (HOSTS, OFFERS, POWER, KEYS, ASSETS, TOMBSTONES, AGREED, HOOKS, DELIVERED, LEASES, JOINED, ERASURES, AUDIT)
