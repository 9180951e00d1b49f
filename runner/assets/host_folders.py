"""The folders that containers get besides their jobs, for an endpoint and an owner."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from runner.assets.cache_store import CacheStore, cache_key
from runner.assets.volume_source import VolumeSource
from runner.assets.volume_store import MountNote, VolumeStore, read_mount_notes, write_mount_note
from runner.engines.port import FolderMount
from schemas.endpoint import Endpoint
from schemas.mounts import Volume, folder_variable


class HostFolders(Struct, frozen=True):
    """The volumes of this host, where their files come from, and the caches.

    `given`: folders to use in place of the volumes of these names, as they are.
    """

    volumes: VolumeStore
    source: VolumeSource
    caches: CacheStore
    given: Mapping[str, Path] = field(default_factory=dict)

    def mount(self, endpoint: Endpoint, owner: str, container: Path) -> tuple[FolderMount, ...]:
        """Return what a container of the endpoint gets, and note it in the container's own folder. Blocking.

        A container that belongs to no owner gets no caches.
        """
        if not endpoint.volumes and not endpoint.caches:
            return ()
        caches = {cache_key(endpoint, owner, cache): cache for cache in endpoint.caches} if owner else {}
        volumes = tuple(
            _mount_volume(volume, self.given.get(volume.name, self.volumes.tree_path(volume)))
            for volume in endpoint.volumes
        )
        with self.caches.lock:
            used = {key for note in read_mount_notes(container.parent) for key in note.caches}
            write_mount_note(container, MountNote(tuple(volume.digest for volume in endpoint.volumes), tuple(caches)))
            opened = [(cache, self.caches.open(key, is_used=key in used)) for key, cache in caches.items()]
        return volumes + tuple(
            FolderMount(
                source=stored.data,
                target=cache.path,
                variables=(folder_variable(cache), *cache.env),
                is_writable=True,
            )
            for cache, stored in opened
        )


def _mount_volume(volume: Volume, source: Path) -> FolderMount:
    return FolderMount(source=source, target=volume.path, variables=(folder_variable(volume), *volume.env))
