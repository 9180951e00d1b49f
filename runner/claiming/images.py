"""The images of this host's endpoints: looked at every few seconds, pulled ahead of need, removed when space is short.

`HostImages` keeps `LocalEndpoint.image` current. An endpoint without its image cannot start; the waiting jobs say why.
Under the process engine, which has no images, a program that was missing blocks its endpoint for a while.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from msgspec.structs import replace

from bus.notifier import Notifier
from bus.secret_files import atomic_write
from runner.context import FailureBackoff, HostContext, RunnerContext
from runner.endpoints import LocalEndpoint, find_folder_digest
from runner.engines.port import (
    MIB,
    EngineError,
    EngineUnavailable,
    ImageStore,
    LocalImage,
    PullFailed,
    PullFailure,
    PullProgress,
    RegistryLogin,
)
from runner.gpu.placement import Unplaceable
from runner.settings import RegistrySettings
from schemas.backoff import Backoff
from schemas.endpoint_parts import ImageReference, mirrored, parse_image_reference
from schemas.host import ImageStatus
from schemas.job import WaitReason

PULL_LIMIT = 2  # pulls at the same time; the engine fetches several layers of each

# What happened to a pull, and what to do. The engine's own text stands between the two.
FAILURE_TEXTS: Mapping[PullFailure, tuple[str, str]] = {
    PullFailure.LOGIN_REFUSED: (
        "{registry} refuses {image} to this login, or does not have it",
        'set username and password_file under [registries."{registry}"], or run docker login on that host',
    ),
    PullFailure.NOT_FOUND: ("{registry} has no {image}", "correct `image` in endpoint.toml, or push it"),
    PullFailure.DISK_FULL: ("the engine's disk is full", "free some space on that host"),
    PullFailure.REGISTRY_UNREACHABLE: (
        "{registry} cannot be reached from the host",
        "check its name, the network and its certificate",
    ),
    PullFailure.INTERRUPTED: ("the connection to {registry} broke", "nothing, it is tried again"),
    PullFailure.FAILED: ("the engine could not pull {image}", "read the engine's log on that host"),
}
NETWORK_IMAGE_FIX = "correct egress.image in the settings of that host, or push it"
PULLING_IS_OFF = "this host pulls no images ([images] pull = false): build or pull {image} there"


class _Image:
    """One image that endpoints name. `progress` is set while it is pulled."""

    def __init__(self, text: str, backoff: Backoff) -> None:
        self.reference = parse_image_reference(text)
        self.local: LocalImage | None = None
        self.progress: PullProgress | None = None
        self.failures = FailureBackoff(backoff)
        self.refresh_at = 0.0


class PulledImages:
    """The ids of the images that this host pulled itself, in a file: only these are ever removed."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._names: dict[str, str] = {}

    def load(self) -> None:
        """Read the file. One that cannot be read means that nothing is removed. Blocking."""
        if self._file is None:
            return
        try:
            self._names = msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            self._names = {}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._names

    def unneeded(self, used_ids: Iterable[str]) -> dict[str, str]:
        """Return the ids that are not in `used_ids`, each with the name under which it was pulled."""
        return {image_id: name for image_id, name in self._names.items() if image_id not in set(used_ids)}

    async def add(self, image_id: str, name: str) -> None:
        """Add an image that was pulled under `name`."""
        self._names[image_id] = name
        await anyio.to_thread.run_sync(self._save)

    async def discard(self, image_id: str) -> None:
        """Take out an image that the engine does not have any more."""
        self._names.pop(image_id, None)
        await anyio.to_thread.run_sync(self._save)

    def _save(self) -> None:
        if self._file is not None:
            atomic_write(self._file, msgspec.json.encode(self._names))


class HostImages:
    """The images of one host. `changed` is notified when an endpoint may start now, or cannot any more."""

    def __init__(self, context: RunnerContext, host: HostContext, changed: Notifier) -> None:
        self._context = context
        self._host = host
        self._changed = changed
        self._store: ImageStore | None = context.engine.images
        self._images: dict[str, _Image] = {}
        self._pulled = PulledImages(host.pulled_images_file)
        self._missing_until: dict[str, float] = {}
        self._wake = Notifier()
        self._limiter = anyio.CapacityLimiter(PULL_LIMIT)

    # ── asked by the claim loop and the heartbeat ────────────────────────────────────────────────────────────────

    def why_unplaceable(self, endpoint: LocalEndpoint) -> Unplaceable | None:
        """Return why this endpoint cannot start for want of its image; None if it can."""
        name = endpoint.config.image
        if self._store is None:
            is_blocked = anyio.current_time() < self._missing_until.get(endpoint.config.name, 0.0)
            return Unplaceable(WaitReason.IMAGE_MISSING, f"{name} was missing") if is_blocked else None
        if endpoint.image is not None:
            network = self._name_network_image(endpoint)
            if network is None or endpoint.network_image is not None:
                return None
            name = network
        image = self._images.get(name)
        if image is not None and image.progress is not None:
            return Unplaceable(WaitReason.IMAGE_PULLING, f"{name} is pulled")
        return Unplaceable(WaitReason.IMAGE_MISSING, f"the engine has no image {name}")

    def _name_network_image(self, endpoint: LocalEndpoint) -> str | None:
        """Return the name of the image for the endpoint's network containers; None if it is the endpoint's own."""
        return self._host.egress_image if endpoint.config.egress is not None else None

    def _names_of(self, endpoint: LocalEndpoint) -> set[str]:
        """Return the names of the images that jobs of this endpoint need."""
        return {endpoint.config.image, self._name_network_image(endpoint) or endpoint.config.image}

    def note_missing(self, endpoint: LocalEndpoint) -> None:
        """Note that a container could not start because its image is gone."""
        name = endpoint.config.name
        self._missing_until[name] = anyio.current_time() + self._context.intervals.image_missing_s
        current = self._host.endpoints.get(name)
        if self._store is not None and current is not None and current.image == endpoint.image:
            self._host.endpoints[name] = replace(current, image=None)
            self._wake.notify()

    def notify(self) -> None:
        """Look at once: the endpoints have changed."""
        self._wake.notify()

    def reports(self) -> tuple[ImageStatus, ...]:
        """Return the images as the heartbeat shows them."""
        return tuple(self._report(name, image) for name, image in sorted(self._images.items()))

    def _report(self, name: str, image: _Image) -> ImageStatus:
        now, progress = anyio.current_time(), image.progress
        why = image.failures.reason or None
        if image.local is None and not self._host.images.pull:
            why = PULLING_IS_OFF.format(image=name)
        return ImageStatus(
            image=name,
            endpoints=tuple(
                sorted(one.config.name for one in self._host.endpoints.values() if name in self._names_of(one))
            ),
            state="ready" if image.local else "pulling" if progress else "missing",
            digest=image.local.digest if image.local else None,
            done_bytes=progress.done_bytes if progress else None,
            total_bytes=progress.total_bytes if progress else None,
            percent=progress.percent if progress else None,
            why=why,
            retry_in_s=round(image.failures.left_s(now), 1) if image.failures.is_waiting(now) else None,
        )

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Look, make room and pull, forever. Does nothing under an engine without images."""
        if self._store is None:
            return
        await anyio.to_thread.run_sync(self._pulled.load)
        async with anyio.create_task_group() as tasks:
            while True:
                wake = self._wake.next_notification()
                await self.look()
                await self._make_room(self._store)
                self._start_pulls(self._store, tasks)
                with anyio.move_on_after(self._pause_s()):
                    await wake.wait()

    async def look(self) -> None:
        """Ask the engine for the image of every endpoint. While the engine is away, what was seen last counts."""
        if self._store is None:
            return
        names = set().union(*map(self._names_of, self._host.endpoints.values()))
        backoff = Backoff(self._host.images.retry_least_s, self._host.images.retry_most_s)
        for name in self._images.keys() - names:
            del self._images[name]
        for name in names - self._images.keys():
            self._images[name] = _Image(name, backoff)
        try:
            for image in list(self._images.values()):
                image.local = await self._find(self._store, image.reference)
        except EngineError as error:
            self._note_engine_error("inspect_image", error)
            return
        await self._update_endpoints()

    async def _find(self, store: ImageStore, reference: ImageReference) -> LocalImage | None:
        """Return the image under its own name, or under that of the mirror."""
        for source in reversed(list(self._sources(reference))):
            if (found := await store.inspect(source)) is not None:
                return found
        return None

    def _sources(self, reference: ImageReference) -> Iterator[ImageReference]:
        """Yield where the image can be pulled from: the mirror, then its own registry."""
        settings = self._host.registries.get(reference.registry)
        if settings is not None and settings.mirror:
            yield mirrored(reference, settings.mirror)
        yield reference

    async def _update_endpoints(self) -> None:
        """Give every endpoint the image that was found. Jobs and containers that exist keep the one they have.

        The folder is looked at when its image has changed: it is then what the image was built from.
        """
        has_changed = False
        for name, endpoint in list(self._host.endpoints.items()):
            image = self._images.get(endpoint.config.image)
            network = self._images.get(self._name_network_image(endpoint) or "")
            network_image = network.local if network else None
            if image is not None and (image.local, network_image) != (endpoint.image, endpoint.network_image):
                digest = await anyio.to_thread.run_sync(find_folder_digest, endpoint.folder)
                if self._host.endpoints.get(name) is not endpoint:
                    continue  # changed meanwhile: the next look sees it
                self._host.endpoints[name] = replace(
                    endpoint, image=image.local, network_image=network_image, folder_digest=digest
                )
                has_changed = True
                self._context.log.info(
                    "image_changed",
                    endpoint=name,
                    image=endpoint.config.image,
                    id=image.local.id if image.local else None,
                )
        if has_changed:
            self._changed.notify()

    def _note_engine_error(self, operation: str, error: EngineError) -> None:
        self._context.log.debug("operation_failed", operation=operation, error=str(error))
        if isinstance(error, EngineUnavailable):
            self._context.outage.engine_suspected.notify()

    def _pause_s(self) -> float:
        now = anyio.current_time()
        waits = (one.failures.left_s(now) for one in self._images.values() if one.failures.is_waiting(now))
        return min(itertools.chain([self._context.intervals.image_s], waits))

    # ── pulling ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_pulls(self, store: ImageStore, tasks: TaskGroup) -> None:
        for name, image in self._images.items():
            if self._must_pull(image):
                image.progress = PullProgress()
                self._changed.notify()
                tasks.start_soon(self._pull, store, name, image)

    def _must_pull(self, image: _Image) -> bool:
        """Return whether to pull now: the image is missing, or its tag may have moved since it was pulled."""
        now = anyio.current_time()
        if not self._host.images.pull or image.progress is not None or image.failures.is_waiting(now):
            return False
        if image.local is None:
            return True
        return image.reference.digest is None and now >= image.refresh_at and image.local.id in self._pulled

    async def _pull(self, store: ImageStore, name: str, image: _Image) -> None:
        before = image.local
        try:
            async with self._limiter:
                await self._pull_from_sources(store, image)
            image.failures.reset()
            await self.look()
            if image.local is not None and image.local != before:
                await self._pulled.add(image.local.id, name)
                self._context.log.info("image_pulled", image=name, digest=image.local.digest)
        except PullFailed as error:
            is_of_networks = all(one.config.image != name for one in self._host.endpoints.values())
            why = _describe(name, image.reference, error, is_of_networks=is_of_networks)
            image.failures.record_failure(why, anyio.current_time())
            self._context.log.warning("image_pull_failed", image=name, code=error.code, error=error.message)
            if error.code is PullFailure.DISK_FULL:
                await self._make_room(store, is_full=True)
        except (EngineError, OSError) as error:
            image.failures.record_failure(str(error), anyio.current_time())
            if isinstance(error, EngineError):
                self._note_engine_error("pull_image", error)
        finally:
            image.progress = None
            image.refresh_at = anyio.current_time() + self._host.images.refresh_s
            self._changed.notify()
            self._wake.notify()

    async def _pull_from_sources(self, store: ImageStore, image: _Image) -> None:
        """Pull from the mirror, then from the registry. Raises PullFailed of the registry if neither has it."""
        *mirrors, registry = self._sources(image.reference)
        for mirror in mirrors:
            try:
                return await self._pull_from(store, image, mirror)
            except PullFailed as error:
                self._context.log.warning(
                    "mirror_pull_failed", mirror=mirror.registry, code=error.code, error=error.message
                )
        return await self._pull_from(store, image, registry)

    async def _pull_from(self, store: ImageStore, image: _Image, source: ImageReference) -> None:
        login = await anyio.to_thread.run_sync(_read_login, self._host.registries.get(source.registry))
        stall_s = self._host.images.stall_s
        with anyio.move_on_after(stall_s) as patience:
            async with aclosing(store.pull(source, login)) as progress:
                async for image.progress in progress:
                    patience.deadline = anyio.current_time() + stall_s
        if patience.cancelled_caught:
            raise PullFailed(PullFailure.INTERRUPTED, f"nothing arrived for {stall_s:.0f} s")

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _make_room(self, store: ImageStore, *, is_full: bool = False) -> None:
        """Remove images that this host pulled and no endpoint names, while less than the reserve is free."""
        images = [image for one in self._host.endpoints.values() for image in (one.image, one.network_image)]
        used_ids = [image.id for image in images if image is not None]
        try:
            for image_id, name in self._pulled.unneeded(used_ids).items():
                free = None if is_full else await store.free_bytes()
                if not is_full and (free is None or free >= self._host.images.reserve_mb * MIB):
                    return
                if await store.remove(image_id):
                    await self._pulled.discard(image_id)
                    self._context.log.info("image_removed", image=name, id=image_id)
        except EngineError as error:
            self._note_engine_error("remove_image", error)


def _describe(name: str, reference: ImageReference, error: PullFailed, *, is_of_networks: bool) -> str:
    """Return one line: what happened, why, and what to do. `is_of_networks`: no endpoint has the image."""
    what, fix = (text.format(registry=reference.registry, image=name) for text in FAILURE_TEXTS[error.code])
    if is_of_networks and error.code is PullFailure.NOT_FOUND:
        fix = NETWORK_IMAGE_FIX
    return f"{what} ({error.message}): {fix}"


def _read_login(settings: RegistrySettings | None) -> RegistryLogin | None:
    """Return the login of the settings. Blocking. Raises PullFailed if the password cannot be read."""
    if settings is None or settings.username is None or settings.password_file is None:
        return None
    try:
        password = settings.password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PullFailed(PullFailure.LOGIN_REFUSED, f"password_file cannot be read: {error}") from error
    return RegistryLogin(settings.username, password)
