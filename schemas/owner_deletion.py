"""The deletion of an owner: its durable progress and its report."""

from enum import StrEnum

from msgspec import Struct, field

from schemas.ids import Token
from schemas.job import Moment


class DeletedOwner(Struct, frozen=True):
    """A row of DELETED_OWNERS, under the owner: hosts remove what they keep between its jobs.

    `at`: when the last of its jobs had ended.
    """

    at: Moment


class OwnerDeletionState(StrEnum):
    """The state of the deletion of an owner's data."""

    RUNNING = "running"
    VERIFYING = "settling"  # nothing is left; look again for what was in flight
    DONE = "done"


class DeletionCounts(Struct, frozen=True, kw_only=True):
    """The counts of deleted things, without the steps right before an edge was killed.

    `cancelled`: the jobs that had not ended. `bytes`: of the assets, each file once. `deliveries`: of webhooks, sent or
    not. `feed`: messages for followers.
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
    secrets: int = 0

    def __add__(self, other: "DeletionCounts") -> "DeletionCounts":
        """Return the sum of both counts."""
        return DeletionCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found that had to be deleted."""
        return self == DeletionCounts()


class OwnerDeletion(Struct, frozen=True, kw_only=True):
    """A row of ERASURES, under the owner. Until it is done, new requests of the owner are refused.

    `requested_by`: the key that asked. `waiting_for`: jobs that are still being stopped. `hosts_pending`: hosts that
    may have files of the owner in their caches until they next take work. `empty_since`: since when nothing more was
    found.
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
