"""The folders that containers get besides their jobs, for an endpoint and an owner."""

from pathlib import Path

from msgspec import Struct

from runner.assets.volume_source import VolumeSource
from runner.assets.volume_store import MountNote, VolumeStore, write_mount_note
from runner.engines.port import FolderMount
from schemas.endpoint import Endpoint
from schemas.mounts import folder_variable


class HostFolders(Struct, frozen=True):
    """The volumes of this host, and where their files come from."""

    volumes: VolumeStore
    source: VolumeSource

    def mount(self, endpoint: Endpoint, container: Path) -> tuple[FolderMount, ...]:
        """Return what a container of the endpoint gets, and note it in the container's own folder. Blocking."""
        mounts = tuple(
            FolderMount(
                source=self.volumes.tree_path(volume),
                target=volume.path,
                variables=(folder_variable(volume), *volume.env),
            )
            for volume in endpoint.volumes
        )
        if mounts:
            write_mount_note(container, MountNote(volumes=tuple(volume.digest for volume in endpoint.volumes)))
        return mounts
