"""Where a job's inputs come from and where its outputs go, as the execution sees it.

SuppliesError
├── AssetGone     the asset is not there (any more): the job cannot run
├── NotPlainFile  what is to be brought there is a link, a device or gone: the job's outputs cannot be taken
└── EdgeAway      the edge does not answer: try again, for as long as it takes
    └── NotHeld   the edge sees no job of this host that needs the file: as before, but it is this job's trouble alone
"""

from pathlib import Path
from typing import NamedTuple, Protocol

from schemas.asset import Digest
from schemas.job import OutputFile


class AssetError(Exception):
    """Root of what can go wrong with a job's files."""


class AssetGone(AssetError):
    """No such asset for this owner."""


class NotPlainFile(AssetError):
    """What is to be kept cannot be opened as a plain file, without following a link."""


class EdgeUnavailable(AssetError):
    """The edge cannot be reached, or cannot answer now."""


class NotHeld(EdgeUnavailable):
    """The edge sees no job of this host that needs the file, now: its index lags, or the record cannot be read.

    A job that somebody else has taken over ends by its record.
    """


class AssetInfo(NamedTuple):
    """What the edge says of an asset before any byte. `suffix`: the ending of its name at this owner, as `.mp4`."""

    bytes: int
    suffix: str = ""


class AssetTransfer(Protocol):
    """The input cache and the edge's asset routes together."""

    async def prefetch(self, owner: str, sha256: Digest) -> None:
        """Have it at hand for a job that is to come. Raises as `stage` does; cancelled, it goes on there later."""
        ...

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        """Put the asset's bytes at `to`, from the cache or the edge. Raises AssetGone, EdgeAway; OSError (disk)."""
        ...

    async def filename_suffix(self, owner: str, sha256: Digest) -> str:
        """The ending of the asset's name at this owner, as `.mp4`; empty where it has none that is safe. Raises as
        `stage` does."""
        ...

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        """Bring the file at `path` to the owner's assets; durable when this returns.

        Raises EdgeAway, NotPlainFile, or another SuppliesError for a file that the edge will never take.
        """
        ...
