"""Port to the images of a container engine: look, pull, remove, and how much space is left. Four calls.

A pull that did not bring the image raises PullFailed, whose `code` says why. References are
`schemas.image_reference`; ids are the engine's own (`sha256:…` of the image's configuration).
"""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from schemas.image_reference import ImageReference


class PullFailure(StrEnum):
    """Why an image did not arrive, as far as the engine's text says it."""

    LOGIN_REFUSED = "login_refused"
    NOT_FOUND = "not_found"
    DISK_FULL = "disk_full"
    REGISTRY_UNREACHABLE = "registry_unreachable"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class PullFailed(Exception):
    """The image did not arrive. What arrived of it may be used by the next try."""

    def __init__(self, code: PullFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class LocalImage(Struct, frozen=True):
    """An image that the engine has. `digest`: of the manifest at the registry; the id, if it came from none."""

    id: str
    digest: str


class RegistryLogin(Struct, frozen=True):
    """Name and password of one registry."""

    username: str
    password: str


class PullProgress(Struct, frozen=True):
    """The arrived part of an image. `total_bytes` counts the layers whose size is known so far, so it may grow.

    `percent`: the mean over all layers, in [0, 100]; a layer whose size is not known counts as 0.
    """

    done_bytes: int = 0
    total_bytes: int = 0
    percent: int = 0


class ImageStore(Protocol):
    """The images of one engine. Every call may raise `EngineUnavailable` of `runner.engines.port`."""

    async def inspect(self, reference: ImageReference) -> LocalImage | None:
        """Return the image that the engine has under this name; None if it has none."""
        ...

    def pull(self, reference: ImageReference, login: RegistryLogin | None) -> AsyncGenerator[PullProgress]:
        """Fetch the image from its registry, and yield what has arrived. Leaving it early stops the pull: `aclosing`.

        Without `login`, the engine's own configuration is used. A tag that the engine has is moved to the image that
        the registry has now. Raises PullFailed.
        """
        ...

    async def remove(self, image_id: str) -> bool:
        """Remove an image that nothing uses, with its names; return whether it is gone. False if it is in use."""
        ...

    async def free_bytes(self) -> int | None:
        """Return the free bytes where the engine keeps its images; None if this process cannot see that folder."""
        ...
