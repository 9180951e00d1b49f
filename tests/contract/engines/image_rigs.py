"""An engine's images and a registry, as the contract suite uses them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edge.server.certificate import load_or_create_certificate
from runner.engines.docker import DockerEngine
from runner.engines.port import ImageStore, RegistryLogin
from tests.support.docker_images import run_docker
from tests.support.fake_images import FakeImageStore, FakeRegistry
from tests.support.image_registry import ImageRegistry, build_small_image, run_registry


class ImageRig(Protocol):
    """What a test needs with the images of one engine."""

    @property
    def store(self) -> ImageStore: ...

    def publish(self, name: str, content: str) -> str:
        """Put an image into the registry under this name; return its reference."""
        ...

    def use(self, reference: str) -> None:
        """Let a container use the image."""
        ...

    def stop_registry(self) -> None: ...

    def start_registry(self) -> None: ...


class FakeImageRig:
    """The fake engine and the fake registry."""

    def __init__(self, login: RegistryLogin | None) -> None:
        self.registry = FakeRegistry(login)
        self.store = FakeImageStore(self.registry)

    def publish(self, name: str, content: str) -> str:
        self.registry.contents[f"registry.test/{name}"] = content
        return f"registry.test/{name}"

    def use(self, reference: str) -> None:
        self.store.used_ids.add(self.store.held[reference].id)

    def stop_registry(self) -> None:
        self.registry.is_down = True

    def start_registry(self) -> None:
        self.registry.is_down = False


class DockerImageRig:
    """A Docker engine and Debian's docker-registry."""

    def __init__(self, engine: DockerEngine, url: str, registry: ImageRegistry, folder: Path) -> None:
        self.store: ImageStore = engine.images
        self._url = url
        self._registry = registry
        self._folder = folder
        self._containers: list[str] = []

    def publish(self, name: str, content: str) -> str:
        built = build_small_image(self._url, f"lamplighter-test-published:{content}", self._folder / content)
        return self._registry.push(self._url, built, name)

    def use(self, reference: str) -> None:
        self._containers.append(run_docker(self._url, "create", reference).stdout.strip())

    def stop_registry(self) -> None:
        self._registry.stop()

    def start_registry(self) -> None:
        self._registry.start()

    def close(self) -> None:
        """Remove the containers."""
        for container in self._containers:
            run_docker(self._url, "rm", container)


@contextmanager
def docker_image_rig(
    engine: DockerEngine, url: str, folder: Path, *, with_login: bool = False, with_tls: bool = False
) -> Iterator[DockerImageRig]:
    with ExitStack() as stack:
        tls = load_or_create_certificate(folder / "tls", ["127.0.0.1"], datetime.now(UTC)) if with_tls else None
        certificate = (tls.cert, tls.key) if tls else None
        registry = run_registry(folder / "registry", certificate=certificate, with_login=with_login)
        rig = DockerImageRig(engine, url, stack.enter_context(registry), folder)
        stack.callback(rig.close)
        yield rig
