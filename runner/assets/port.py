"""Port to the files of a job, as an execution uses it.

AssetError
├── AssetGone        the asset does not exist, or not any more: the job cannot run
├── SecretMissing    a secret that the job needs is not set
├── NotPlainFile     an output is a link, a device or gone: the job's outputs cannot be taken
└── EdgeUnavailable  the edge does not answer: retry until it does
    ├── SecretsUnavailable  the edge does not give the job's secrets now: retry too, but only this job waits
    └── NotHeld      the edge knows no job of this host that needs the file: retry too, but only this job waits
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from schemas.asset import Digest
from schemas.job import OutputFile


class AssetError(Exception):
    """Root of the errors about a job's files."""


class AssetGone(AssetError):
    """The asset does not exist for this owner, or not any more."""


class SecretMissing(AssetError):
    """A secret that the job needs is not set, or not any more. The message is the edge's."""


class NotPlainFile(AssetError):
    """A file to upload cannot be opened as a plain file without following a link."""


class EdgeUnavailable(AssetError):
    """The edge cannot be reached, or cannot answer now."""


class SecretsUnavailable(EdgeUnavailable):
    """The edge answers, and cannot give the secrets of this job now: for example, its key file is another one."""


class NotHeld(EdgeUnavailable):
    """The edge knows no job of this host that needs the file: its index lags, or the record cannot be read.

    If somebody else has taken the job over, the execution ends by its record.
    """


class AssetInfo(NamedTuple):
    """Properties of an asset. `suffix` is the ending of its name at this owner, such as `.mp4`."""

    bytes: int
    suffix: str = ""


class AssetTransfer(Protocol):
    """The input cache and the edge's asset routes together."""

    async def prefetch(self, owner: str, sha256: Digest) -> None:
        """Fetch an input of a later job into the cache. Raises as `stage` does. A cancelled download can be resumed."""
        ...

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        """Put the asset's bytes at `to`, from cache or edge. Raises AssetGone, EdgeUnavailable; OSError (disk)."""
        ...

    async def filename_suffix(self, owner: str, sha256: Digest) -> str:
        """Return the ending of the asset's name at this owner, such as `.mp4`; "" without a safe one.

        Raises as `stage` does.
        """
        ...

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        """Upload the file at `path` as an asset of the owner; it is durable when this returns.

        Raises EdgeUnavailable, NotPlainFile, or another AssetError for a file that the edge will never accept.
        """
        ...

    async def fetch_secrets(self, owner: str, job_id: str) -> Mapping[str, str]:
        """Return the secrets of a job that this host runs, by name.

        Raises SecretMissing, EdgeUnavailable.
        """
        ...
