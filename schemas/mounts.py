"""Folders that an endpoint's containers get besides their job: `[[volumes]]` and `[[caches]]` of endpoint.toml.

A volume is read-only and has the same files for everybody. A cache is writable and belongs to one owner.
"""

import hashlib
from collections.abc import Container, Iterator, Sequence
from itertools import combinations
from typing import Annotated

from msgspec import Meta, Struct

from schemas.asset import Digest
from schemas.host_config import EnvName, HttpUrl
from schemas.job_environment import OWN_PREFIX

VOLUMES_OWNER = "lamplighter-volumes"  # every host may read the assets of this owner, and they are kept
RESERVED_PATHS = ("/job", "/tmp", "/run", "/proc", "/sys", "/dev")  # noqa: S108 - in the container, with all below them

MountName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9_]{0,31}(?![\s\S])",
        description="up to 32 lower-case letters, digits and _, the first one a letter",
    ),
]
MountPath = Annotated[
    str,
    Meta(
        pattern=r"^(?!.*//)(?!.*/\.{1,2}(/|$))(/[^/\x00-\x1f\\:,]{1,100}){1,8}(?![\s\S])",
        description="the full path of a folder in the container, as in /weights",
    ),
]
FilePath = Annotated[
    str,
    Meta(
        pattern=r"^(?!/)(?!.*//)(?!(.*/)?\.{1,2}(/|$))[^/\x00-\x1f\\]{1,100}(/[^/\x00-\x1f\\]{1,100}){0,8}(?![\s\S])",
        description="the path of a file in the volume, as in model/unet.pth",
    ),
]
Names = Annotated[tuple[EnvName, ...], Meta(description='a list of names of variables, as in ["HF_HOME"]')]


class VolumeFile(Struct, frozen=True, kw_only=True):
    """One file of a volume. Without `url` it is the asset with this digest of the owner VOLUMES_OWNER."""

    path: FilePath
    sha256: Digest
    url: HttpUrl | None = None
    bytes: Annotated[int, Meta(ge=0)] | None = None


class Volume(Struct, frozen=True, kw_only=True):
    """A read-only folder, mounted at `path`. `env`: more variables that hold its path, besides `folder_variable`."""

    name: MountName
    path: MountPath
    files: Annotated[tuple[VolumeFile, ...], Meta(min_length=1, max_length=1000)]
    env: Names = ()

    @property
    def digest(self) -> Digest:
        """The identity of the content: the sha256 of the list that `sha256sum` would print, sorted."""
        lines = sorted(f"{file.sha256}  {file.path}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Cache(Struct, frozen=True, kw_only=True):
    """A writable folder of one owner, mounted at `path`. More than `max_mb` MiB are not kept after a job."""

    name: MountName
    path: MountPath
    max_mb: Annotated[int, Meta(ge=1, le=1_000_000)]
    env: Names = ()


def folder_variable(mount: Volume | Cache) -> str:
    """Return the name of the variable that holds the folder's path for the job."""
    kind = "VOLUME" if isinstance(mount, Volume) else "CACHE"
    return f"LAMPLIGHTER_{kind}_{mount.name.upper()}"


def find_mount_problems(volumes: Sequence[Volume], caches: Sequence[Cache], env: Container[str] = ()) -> Iterator[str]:
    """Yield what is wrong with valid tables together: names that occur twice, folders inside each other.

    `env`: the variables of the endpoint's `[env]`.
    """
    mounts: list[tuple[str, Volume | Cache]] = [
        *((f"volumes[{number}]", volume) for number, volume in enumerate(volumes)),
        *((f"caches[{number}]", cache) for number, cache in enumerate(caches)),
    ]
    for place, mount in mounts:
        if reserved := next((path for path in RESERVED_PATHS if _is_inside(mount.path, path)), None):
            yield f"{place}.path {mount.path} is in {reserved}, which containers need: choose another folder"
        yield from _find_variable_problems(place, mount, env)
    for (place, mount), (other_place, other) in combinations(mounts, 2):
        for name in sorted({*mount.env} & {*other.env}):
            yield f"{other_place}.env and {place}.env both name {name}: remove one"
        if folder_variable(mount) == folder_variable(other):
            yield f"{other_place}.name {other.name} is also the name of {place}: rename one"
        if _is_inside(mount.path, other.path) or _is_inside(other.path, mount.path):
            yield f"{other_place}.path {other.path} and {place}.path {mount.path} overlap: use separate folders"
    for number, volume in enumerate(volumes):
        yield from _find_file_problems(f"volumes[{number}]", volume)


def _find_variable_problems(place: str, mount: Volume | Cache, env: Container[str]) -> Iterator[str]:
    for name in mount.env:
        if name in env:
            yield f"{place}.env names {name}, which is set in [env] too: remove one"
        if name.startswith(OWN_PREFIX):
            yield f"{place}.env names {name}, and {OWN_PREFIX}… is set for each job: choose another name"


def _find_file_problems(place: str, volume: Volume) -> Iterator[str]:
    seen: set[str] = set()
    folders = {file.path[:end] for file in volume.files for end, char in enumerate(file.path) if char == "/"}
    for number, file in enumerate(volume.files):
        if file.path in seen:
            yield f"{place}.files[{number}].path {file.path} is in the volume twice: remove one"
        if file.path in folders:
            yield f"{place}.files[{number}].path {file.path} is also a folder of the volume: rename one"
        seen.add(file.path)


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
