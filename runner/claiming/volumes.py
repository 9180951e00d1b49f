"""The volumes of this host's endpoints: filled ahead of need, checked every few seconds, removed when space is short.

An endpoint without one of its volumes cannot start; the waiting jobs say why.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread
from msgspec import Struct

from bus.notifier import Notifier
from runner.assets.container_folders import HostFolders
from runner.assets.volume_source import FillFailed, FillFailure, server_name
from runner.assets.volume_store import FileLock, VolumeStore, list_volumes
from runner.claiming.images import HostImages
from runner.context import FailureBackoff, HostContext, RunnerContext, run_in_background
from runner.endpoints import LocalEndpoint
from runner.gpu.placement import Unplaceable
from schemas.asset import Digest
from schemas.backoff import Backoff
from schemas.endpoint_parts import Volume, VolumeFile
from schemas.host import VolumeStatus
from schemas.job import WaitReason

FILL_LIMIT = 2  # volumes that are filled at the same time
LOCK_POLL_INTERVAL_S = 0.5  # while another runner of this machine downloads the same file
PROGRESS_INTERVAL_S = 0.5
SIZE_REQUESTS_LIMIT = 8  # at the same time, of one volume
SIZE_REQUESTS_TIMEOUT_S = 15.0  # of all together; what is not known by then, the downloads tell

# What happened to a fill, and what to do. The details stand between the two.
FAILURE_TEXTS: Mapping[FillFailure, tuple[str, str]] = {
    FillFailure.NOT_FOUND: ("{server} has no {file}", "correct its `url` in endpoint.toml, or put the file there"),
    FillFailure.REFUSED: ("{server} refuses {file}", "check the login in its `url` in endpoint.toml"),
    FillFailure.WRONG_DIGEST: (
        "{server} sent another file in place of {file}",
        "correct its `sha256` in endpoint.toml, or the file there",
    ),
    FillFailure.DISK_FULL: (
        "the disk for volumes has no room for {file}",
        "free some space on that host, or set [volumes] folder to another disk",
    ),
    FillFailure.QUOTA: (
        "{file} does not fit into [volumes] max_gb beside what that host needs",
        "raise it, or offer fewer endpoints there",
    ),
    FillFailure.UNREACHABLE: (
        "{server} cannot be reached from the host for {file}",
        "check the address, the network and its certificate",
    ),
    FillFailure.INTERRUPTED: ("the connection to {server} broke at {file}", "nothing, it goes on from there"),
    FillFailure.FAILED: ("{file} cannot be had from {server}", "look at that server, or at the disk of that host"),
}

# What to do about a file without a URL.
ASSET_FIXES: Mapping[FillFailure, str] = {
    FillFailure.NOT_FOUND: "upload it with a key of the owner lamplighter-volumes, or correct its `sha256`",
    FillFailure.REFUSED: "give that host a new key: run lamplighter hosts add for it, and the command that it prints",
}

UsedEndpoints = Callable[[], Iterable[LocalEndpoint]]


def use_nothing() -> tuple[LocalEndpoint, ...]:
    """Return no endpoint: nothing runs yet."""
    return ()


class _HostVolume:
    """One volume that endpoints name. `sizes`: of the files whose size is known."""

    def __init__(self, volume: Volume, backoff: Backoff) -> None:
        self.volume = volume
        self.is_ready = False
        self.is_filling = False
        self.done_bytes = 0
        self.sizes: dict[Digest, int] = {file.sha256: file.bytes for file in volume.files if file.bytes is not None}
        self.failures = FailureBackoff(backoff)
        self.failure: FillFailure | None = None  # the last one
        self.scope = anyio.CancelScope()  # of the fill

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def percent(self) -> int:
        """Percent of the known bytes; 100 is left to the complete volume."""
        return min(99, 100 * self.done_bytes // self.total_bytes) if self.total_bytes else 0


class HostVolumes:
    """The volumes of one host. `changed` is notified when an endpoint may start now, or cannot any more.

    `used` returns the endpoints of jobs and containers, which may be older than those that the host offers.
    """

    def __init__(
        self, context: RunnerContext, host: HostContext, changed: Notifier, used: UsedEndpoints = use_nothing
    ) -> None:
        self._context = context
        self._host = host
        self._changed = changed
        self._used = used
        self._volumes: dict[Digest, _HostVolume] = {}
        self._wake = Notifier()
        self._limiter = anyio.CapacityLimiter(FILL_LIMIT)

    def why_unplaceable(self, endpoint: LocalEndpoint) -> Unplaceable | None:
        """Return why this endpoint cannot start for want of a volume; None if it can."""
        for volume in endpoint.config.volumes:
            state = self._volumes.get(volume.digest)
            if state is None or (not state.is_ready and state.is_filling):
                return Unplaceable(WaitReason.VOLUME_FILLING, f"the volume {volume.name} is being downloaded")
            if not state.is_ready:
                return Unplaceable(WaitReason.VOLUME_MISSING, f"the volume {volume.name} is not complete")
        return None

    def notify(self) -> None:
        """Look at once: the endpoints have changed."""
        self._wake.notify()

    def reports(self) -> tuple[VolumeStatus, ...]:
        """Return the volumes as the heartbeat shows them."""
        return tuple(self._report(digest, state) for digest, state in sorted(self._volumes.items()))

    def _report(self, digest: Digest, state: _HostVolume) -> VolumeStatus:
        now = anyio.current_time()
        named = [
            (volume.name, endpoint.config.name)
            for endpoint in self._host.endpoints.values()
            for volume in endpoint.config.volumes
            if volume.digest == digest
        ]
        is_filling = state.is_filling and not state.is_ready
        return VolumeStatus(
            volume=digest,
            names=tuple(sorted({name for name, _ in named})),
            endpoints=tuple(sorted({endpoint for _, endpoint in named})),
            state="ready" if state.is_ready else "filling" if is_filling else "missing",
            done_bytes=state.done_bytes if is_filling else None,
            total_bytes=state.total_bytes if is_filling else None,
            percent=state.percent if is_filling else None,
            why=state.failures.reason or None,
            failure=state.failure if state.failures.reason else None,
            retry_in_s=round(state.failures.left_s(now), 1) if state.failures.is_waiting(now) else None,
        )

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Look, make room and fill, forever."""
        folders = self._context.folders
        if folders is None:
            return
        async with anyio.create_task_group() as tasks:
            while True:
                wake = self._wake.next_notification()
                await self.look()
                for state in self._volumes.values():
                    if not state.is_ready and not state.is_filling and not self._is_waiting(state):
                        state.is_filling = True
                        self._changed.notify()
                        tasks.start_soon(self._fill, folders, state)
                with anyio.move_on_after(self._pause_s()):
                    await wake.wait()

    async def look(self) -> None:
        """Compare what the endpoints name with what is on the disk, and keep the limit."""
        folders = self._context.folders
        wanted = list_volumes(endpoint.config.volumes for endpoint in self._host.endpoints.values())
        self._follow_endpoints(wanted)
        if folders is None or not (wanted or folders.volumes.exists):
            return
        try:
            await anyio.to_thread.run_sync(folders.volumes.prepare, wanted.values())
            for state in list(self._volumes.values()):
                await self._look_at(folders.volumes, state)
            await anyio.to_thread.run_sync(folders.volumes.collect, self._used_digests())
        except OSError as error:
            self._context.log.warning("operation_failed", operation="look_at_volumes", error=str(error))
            for state in self._volumes.values():
                if not state.is_ready and not state.is_filling and not self._is_waiting(state):
                    self._note_failure(state, state.volume.files[0], folders.volumes.explain_error(error))

    def _follow_endpoints(self, wanted: Mapping[Digest, Volume]) -> None:
        """Take up new volumes, and those whose URLs were corrected; stop filling those that are not needed any more."""
        for digest, state in list(self._volumes.items()):
            if wanted.get(digest) != state.volume:
                state.scope.cancel()
                del self._volumes[digest]
        for digest in wanted.keys() - self._volumes.keys():
            backoff = Backoff(self._host.volumes.retry_least_s, self._host.volumes.retry_most_s)
            self._volumes[digest] = _HostVolume(wanted[digest], backoff)

    async def _look_at(self, store: VolumeStore, state: _HostVolume) -> None:
        was_ready = state.is_ready
        state.is_ready = await anyio.to_thread.run_sync(store.is_complete, state.volume)
        if state.is_ready != was_ready:
            self._context.log.info("volume_changed", volume=state.volume.digest, is_ready=state.is_ready)
            self._changed.notify()

    def _used_digests(self) -> list[Digest]:
        return [volume.digest for endpoint in self._used() for volume in endpoint.config.volumes]

    def _is_waiting(self, state: _HostVolume) -> bool:
        return state.failures.is_waiting(anyio.current_time())

    def _pause_s(self) -> float:
        now = anyio.current_time()
        waits = (one.failures.left_s(now) for one in self._volumes.values() if one.failures.is_waiting(now))
        return min(itertools.chain([self._context.intervals.image_s], waits))

    # ── filling ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fill(self, folders: HostFolders, state: _HostVolume) -> None:
        volume = state.volume
        try:
            with state.scope:
                async with self._limiter, run_in_background(partial(self._follow_progress, folders.volumes, state)):
                    missing = await anyio.to_thread.run_sync(folders.volumes.missing_files, volume)
                    if len(missing) > 1:  # the download of a single one asks for room before its first byte
                        await self._make_room_for_all(folders, state, missing)
                    for file in missing:
                        await self._bring(folders, state, file)
                    await anyio.to_thread.run_sync(folders.volumes.assemble, volume)
                    await self._look_at(folders.volumes, state)
            state.failures.reset()
            self._context.log.info("volume_filled", volume=volume.digest, name=volume.name)
        except FillFailed as error:
            self._note_failure(state, None, error)
        except _FileFailed as error:
            self._note_failure(state, error.file, error.failure)
        except OSError as error:
            self._note_failure(state, volume.files[0], folders.volumes.explain_error(error))
        finally:
            state.is_filling = False
            self._changed.notify()
            self._wake.notify()

    async def _make_room_for_all(self, folders: HostFolders, state: _HostVolume, missing: list[VolumeFile]) -> None:
        """Make room for all files whose size can be known now. Raises FillFailed, before anything is downloaded."""
        limiter = anyio.CapacityLimiter(SIZE_REQUESTS_LIMIT)

        async def find_size(file: VolumeFile) -> None:
            async with limiter:
                if (size := await folders.source.find_size(file)) is not None:
                    state.sizes[file.sha256] = size

        with anyio.move_on_after(SIZE_REQUESTS_TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                for file in missing:
                    tasks.start_soon(find_size, file)
        sizes = {file.sha256: state.sizes[file.sha256] for file in missing if file.sha256 in state.sizes}
        if sizes:
            await anyio.to_thread.run_sync(folders.volumes.make_room, sizes, self._used_digests())

    def _note_failure(self, state: _HostVolume, file: VolumeFile | None, error: FillFailed) -> None:
        """Note the failure of one file, or of the whole volume."""
        state.failure = error.code
        why = _describe(state.volume, file, error)
        state.failures.record_failure(why, anyio.current_time())
        self._context.log.warning(
            "volume_fill_failed",
            volume=state.volume.digest,
            file=file.path if file else None,
            code=error.code,
            error=error.message,
        )

    async def _bring(self, folders: HostFolders, state: _HostVolume, file: VolumeFile) -> None:
        """Download one file, or wait until another runner of this machine has. Raises _FileFailed."""
        store = folders.volumes
        lock = await self._lock(store, file.sha256)
        if lock is None:
            return

        async def make_room(size: int) -> None:
            state.sizes[file.sha256] = size
            used = self._used_digests()
            await anyio.to_thread.run_sync(partial(store.make_room, {file.sha256: size}, used))

        try:
            await folders.source.download(file, store.part_path(file.sha256), make_room)
            await anyio.to_thread.run_sync(store.add, file.sha256)
        except FillFailed as error:
            raise _FileFailed(file, error) from error
        except OSError as error:
            failure = store.explain_error(error)
            if failure.code is FillFailure.DISK_FULL:  # running jobs need the space more than the next try does
                await anyio.to_thread.run_sync(partial(store.part_path(file.sha256).unlink, missing_ok=True))
            raise _FileFailed(file, failure) from error
        finally:
            lock.release()

    async def _lock(self, store: VolumeStore, sha256: Digest) -> FileLock | None:
        """Return the right to download the file; None once it is here."""
        while True:
            lock = store.try_lock(sha256)
            is_here = await anyio.to_thread.run_sync(store.contains, sha256)
            if lock is not None and not is_here:
                return lock
            if lock is not None:
                lock.release()
            if is_here:
                return None
            await anyio.sleep(LOCK_POLL_INTERVAL_S)

    async def _follow_progress(self, store: VolumeStore, state: _HostVolume) -> None:
        while True:
            with suppress(OSError):
                state.done_bytes = await anyio.to_thread.run_sync(store.received_bytes, state.volume)
            await anyio.sleep(PROGRESS_INTERVAL_S)


class _FileFailed(Exception):
    """A file of the volume did not arrive."""

    def __init__(self, file: VolumeFile, failure: FillFailed) -> None:
        super().__init__(failure.message)
        self.file = file
        self.failure = failure


def _describe(volume: Volume, file: VolumeFile | None, error: FillFailed) -> str:
    """Return one line: what happened, why, and what to do."""
    values = {"server": "", "file": f"the volume {volume.name}"}
    if file is not None:
        values = {"server": server_name(file), "file": f"{file.path} of the volume {volume.name}"}
    what, fix = (text.format(**values) for text in FAILURE_TEXTS[error.code])
    if file is not None and file.url is None:
        fix = ASSET_FIXES.get(error.code, fix)
    return f"{what} ({error.message}): {fix}"


class HostContents(Struct, frozen=True):
    """The images and volumes that this host fetches ahead of need."""

    images: HostImages
    volumes: HostVolumes

    def why_unplaceable(self, endpoint: LocalEndpoint) -> Unplaceable | None:
        """Return why this endpoint cannot start for want of its image or a volume; None if it can."""
        return self.images.why_unplaceable(endpoint) or self.volumes.why_unplaceable(endpoint)

    @property
    def is_fetching(self) -> bool:
        """Whether an image is being pulled or a volume is being filled now."""
        return any(one.state == "pulling" for one in self.images.reports()) or any(
            one.state == "filling" for one in self.volumes.reports()
        )

    def notify(self) -> None:
        """Look at once: the endpoints have changed."""
        self.images.notify()
        self.volumes.notify()

    async def look(self) -> None:
        """Look once at all that is here."""
        await self.images.look()
        await self.volumes.look()
