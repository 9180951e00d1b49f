"""The fake of an engine's images, and of the registries that they come from."""

import hashlib
from collections.abc import AsyncGenerator

import anyio

from runner.engines.port import LocalImage, PullFailed, PullFailure, PullProgress, RegistryLogin
from schemas.endpoint_parts import ImageReference, parse_image_reference


def image_id(content: str) -> str:
    """Return the id of an image with this content."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


class FakeRegistry:
    """Images by reference, each a text. `login`: what it asks for. Set `is_down` to cut it, `hold` to stop pulls."""

    def __init__(self, login: RegistryLogin | None = None) -> None:
        self.contents: dict[str, str] = {}
        self.login = login
        self.is_down = False
        self.hold: anyio.Event | None = None
        self.pulls: list[str] = []


class FakeImageStore:
    """The images of one fake engine. `registry` stands for all registries. `free` is what the disk has left."""

    def __init__(self, registry: FakeRegistry) -> None:
        self.registry = registry
        self.held: dict[str, LocalImage] = {}  # by reference
        self.used_ids: set[str] = set()
        self.free: int | None = 100 << 30
        self.image_bytes = 1 << 20

    def build(self, name: str, content: str) -> LocalImage:
        """Make an image on the host, as `docker build` does."""
        made = LocalImage(image_id(content), image_id(content))
        self.held[parse_image_reference(name).text] = made
        return made

    async def inspect(self, reference: ImageReference) -> LocalImage | None:
        return self.held.get(reference.text)

    async def pull(self, reference: ImageReference, login: RegistryLogin | None) -> AsyncGenerator[PullProgress]:
        self.registry.pulls.append(reference.text)
        if self.registry.is_down:
            raise PullFailed(PullFailure.REGISTRY_UNREACHABLE, "connection refused: the test said so")
        if self.registry.login not in {None, login}:
            raise PullFailed(PullFailure.LOGIN_REFUSED, "unauthorized: the test said so")
        content = self.registry.contents.get(reference.text)
        if content is None:
            raise PullFailed(PullFailure.NOT_FOUND, f"manifest for {reference.text} not found: manifest unknown")
        yield PullProgress(self.image_bytes // 2, self.image_bytes, 50)
        if self.registry.hold is not None:
            await self.registry.hold.wait()
        if self.free is not None and self.free < self.image_bytes:
            raise PullFailed(PullFailure.DISK_FULL, "no space left on device: the test said so")
        if self.free is not None:
            self.free -= self.image_bytes
        self.held[reference.text] = LocalImage(image_id(content), image_id(f"manifest of {content}"))
        yield PullProgress(self.image_bytes, self.image_bytes, 100)

    async def remove(self, image_id: str) -> bool:
        if image_id in self.used_ids:
            return False
        names = [name for name, image in self.held.items() if image.id == image_id]
        for name in names:
            del self.held[name]
        if names and self.free is not None:
            self.free += self.image_bytes
        return True

    async def free_bytes(self) -> int | None:
        return self.free
