"""The owners of an installation and what each of them has: what an administrator reads before a deletion."""

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from bus.interface import Bus
from edge.core.error_handling import translate_errors
from edge.index.index import JobIndex
from edge.owners.api_keys import ApiKeyStore
from edge.owners.secrets import secret_prefix
from schemas.auth import Scope
from schemas.owner_deletion import OwnerDeletion
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES

_RETRY_AFTER_S = 10


class OwnerSummary(Struct, frozen=True, kw_only=True):
    """An owner. `unfinished`: jobs that have not ended. `deletion`: the last one that was requested."""

    owner: str
    jobs: int
    unfinished: int
    assets: int
    keys: int
    deletion: OwnerDeletion | None = None


class OwnerHoldings(Struct, frozen=True, kw_only=True):
    """All that a deletion of the owner deletes. `bytes`: of the assets. `deliveries`: of webhooks, in their log."""

    owner: str
    jobs: int
    unfinished: int
    assets: int
    bytes: int
    keys: int
    deliveries: int
    secrets: int


class OwnerDirectory:
    """Counts what owners have. A host has a key, but is not an owner."""

    def __init__(self, bus: Bus, index: JobIndex, keys: ApiKeyStore) -> None:
        self._bus = bus
        self._index = index
        self._keys = keys

    async def list(self) -> Sequence[OwnerSummary]:
        """Return every owner with keys, jobs, assets or a deletion, by name. Raises ProblemError."""
        jobs, unfinished = self._count_jobs()
        with translate_errors():
            stored_keys = await self._keys.list()
            assets = Counter(name.partition(".")[0] for name in await self._bus.asset_references.keys())
            deletions = {owner: row.value for owner, row in (await self._bus.owner_deletions.rows()).items()}
        keys = Counter(key.owner for key in stored_keys)
        hosts = {key.owner for key in stored_keys if Scope.RUNNER in key.scopes}
        return [
            OwnerSummary(
                owner=owner,
                jobs=jobs[owner],
                unfinished=unfinished[owner],
                assets=assets[owner],
                keys=keys[owner],
                deletion=deletions.get(owner),
            )
            for owner in sorted({*jobs, *assets, *keys, *deletions} - hosts)
        ]

    async def count(self, owner: str) -> OwnerHoldings:
        """Return what the owner has; zeros for an unknown one. Raises ProblemError."""
        jobs, unfinished = self._count_jobs()
        with translate_errors():
            assets = [row.value.bytes for row in (await self._bus.asset_references.rows(f"{owner}.")).values()]
            return OwnerHoldings(
                owner=owner,
                jobs=jobs[owner],
                unfinished=unfinished[owner],
                assets=len(assets),
                bytes=sum(assets),
                keys=len(await self._keys.list(owner)),
                deliveries=len(await self._bus.delivery_log.keys(f"{owner}.>")),
                secrets=len(await self._bus.secrets.keys(f"{secret_prefix(owner)}>")),
            )

    def _count_jobs(self) -> tuple[Counter[str], Counter[str]]:
        """Return the jobs of each owner, all and those that have not ended. Raises ProblemError `unavailable`."""
        if not self._index.is_caught_up:
            raise ProblemError(
                "unavailable", "the edge is still reading its jobs: try again", retry_after_s=_RETRY_AFTER_S
            )
        jobs, unfinished = Counter[str](), Counter[str]()
        for key, count in self._index.count_jobs().items():
            jobs[key.owner] += count
            if key.status not in FINAL_STATUSES:
                unfinished[key.owner] += count
        return +jobs, unfinished
