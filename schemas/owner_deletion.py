"""The deletion of a whole owner: a durable job of its own, and its report of what went."""

from enum import StrEnum

from msgspec import Struct, field

from schemas.ids import Token
from schemas.job import Moment


class OwnerDeletionState(StrEnum):
    """Where it stands."""

    RUNNING = "running"
    VERIFYING = "settling"  # nothing was found any more; what was on its way meanwhile is still looked for
    DONE = "done"


class DeletionCounts(Struct, frozen=True, kw_only=True):
    """What went, but for what did in the moment before an edge was killed. `cancelled`: of the jobs those that had not
    ended. `bytes`: of the assets, each file once.

    `deliveries`: of webhooks, sent or not. `feed`: messages that followers could have read.
    """

    jobs: int = 0
    cancelled: int = 0
    assets: int = 0
    bytes: int = 0
    uploads: int = 0
    keys: int = 0
    deliveries: int = 0
    feed: int = 0
    usage_rows: int = 0

    def __add__(self, other: "DeletionCounts") -> "DeletionCounts":
        """Both together."""
        return DeletionCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found."""
        return self == DeletionCounts()


class OwnerDeletion(Struct, frozen=True, kw_only=True):
    """A row of ERASURES, under the owner. While it is not done, nothing new of that owner is taken.

    `by`: the key that asked. `waiting_for`: jobs that are still being stopped. `hosts_pending`: hosts that may have
    files of the owner in their caches until they next take work. `quiet_since`: nothing was found from then on.
    """

    owner: Token
    requested_at: Moment = field(name="asked_at")
    requested_by: str = field(default="", name="by")
    state: OwnerDeletionState = OwnerDeletionState.RUNNING
    counts: DeletionCounts = field(default=DeletionCounts(), name="erased")
    waiting_for: int = 0
    hosts_pending: tuple[str, ...] = ()
    empty_since: Moment | None = field(default=None, name="quiet_since")
    finished_at: Moment | None = None
