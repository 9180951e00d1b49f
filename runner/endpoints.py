"""The endpoints of this host: `endpoint.toml` in each configured folder, or in a folder one level below it."""

import functools
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from bus.input_schema import check_input_schema
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec, FolderMount, LocalImage
from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint
from schemas.host import HOST_ENDPOINTS_LIMIT, HOST_ENDPOINTS_LIMIT_BYTES
from schemas.job import JobProgram

ENDPOINT_FILE = "endpoint.toml"
DOCKERFILE = "Dockerfile"
SOURCE_LIMIT_BYTES = 64 * 1024 * 1024  # of all files together; a larger folder holds data
SOURCE_DEPTH_LIMIT = 8
STAMPED_FILES_LIMIT = 2_000  # of one folder; a larger one holds data, and looking at it all again and again costs


class LocalEndpoint(Struct, frozen=True):
    """An endpoint, and the folder that defines it. The process engine runs the image in that folder.

    `image`: what the engine has under the endpoint's image name, as last seen; None if it has nothing, or no images.
    `network_image`: the same for the image in the setting egress.image, if the endpoint has a network. `digest`: of the
    bytes of endpoint.toml. `stamp` changes when a file of the folder does. `folder_digest`: of the files in the folder
    (`find_folder_digest`); None if they are too many or too large.
    """

    config: Endpoint
    folder: Path
    image: LocalImage | None = None
    digest: str | None = None
    stamp: int = 0
    network_image: LocalImage | None = None
    folder_digest: str | None = None

    @property
    def source_digest(self) -> str | None:
        """The digest of what the program was made of on this host; None if it came from a registry or is not known.

        An image that was loaded from an archive has no registry either. Then the folder has no Dockerfile.
        """
        if self.image is None:
            return self.folder_digest if self.config.process is not None else None
        is_built_here = self.image.digest == self.image.id and (self.folder / DOCKERFILE).is_file()
        return self.folder_digest if is_built_here else None

    @property
    def program(self) -> JobProgram:
        """The program that a job of this endpoint runs now, for its record."""
        if self.image is None:
            return JobProgram(endpoint_digest=self.digest)
        return JobProgram(self.config.image, self.image.digest, self.digest)


def load_endpoints(folders: Iterable[Path], pool: str | None = None) -> Mapping[str, LocalEndpoint]:
    """Return the endpoints by name; only those of `pool`, if it is named.

    Raises EndpointInvalid, which names the file. It is also raised if two folders define one name, if a folder defines
    none, or if all together are more than one host may offer.
    """
    endpoints: dict[str, LocalEndpoint] = {}
    for folder in folders:
        files = sorted([*folder.glob(ENDPOINT_FILE), *folder.glob(f"*/{ENDPOINT_FILE}")])
        if not files:
            raise EndpointInvalid(
                f"there is no {ENDPOINT_FILE} in {folder} or one level below: give folders of images with --endpoints, "
                "or set `endpoints`"
            )
        for path in files:
            endpoint = _load_endpoint(path)
            if endpoint.config.name in endpoints:
                other = endpoints[endpoint.config.name].folder
                raise EndpointInvalid(f"{path}: endpoint {endpoint.config.name} is also defined in {other}: rename one")
            endpoints[endpoint.config.name] = endpoint
    if pool is not None:
        endpoints = {name: one for name, one in endpoints.items() if one.config.effective_pool == pool}
        if not endpoints:
            raise EndpointInvalid(f"no endpoint of this host is in the pool {pool}: correct `pool` or `endpoints`")
    _check_limits(endpoints)
    return endpoints


def _check_limits(endpoints: Mapping[str, LocalEndpoint]) -> None:
    remedy = "set `endpoints` to fewer folders, and run the others on another host"
    if len(endpoints) > HOST_ENDPOINTS_LIMIT:
        raise EndpointInvalid(f"this host defines {len(endpoints)} endpoints, at most {HOST_ENDPOINTS_LIMIT}: {remedy}")
    size = len(msgspec.json.encode([endpoint.config.offered for endpoint in endpoints.values()]))
    if size > HOST_ENDPOINTS_LIMIT_BYTES:
        raise EndpointInvalid(
            f"the endpoints of this host have {size} bytes of JSON, at most {HOST_ENDPOINTS_LIMIT_BYTES}: {remedy}"
        )


def _load_endpoint(path: Path) -> LocalEndpoint:
    try:
        data = path.read_bytes()
        endpoint = parse_endpoint(data.decode("utf-8-sig"))  # some editors put a mark before UTF-8
        check_input_schema(endpoint.input)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        folder, stamp = path.parent.resolve(), _stamp_folder(path.parent)
        return LocalEndpoint(endpoint, folder, digest=digest, stamp=stamp, folder_digest=find_folder_digest(folder))
    except UnicodeDecodeError as error:
        raise EndpointInvalid(f"{path}: it is not text in UTF-8 ({error.reason}): save it as UTF-8") from error
    except (EndpointInvalid, OSError) as error:
        raise EndpointInvalid(f"{path}: {error}") from error


def _stamp_folder(folder: Path) -> int:
    """Return a number that changes when a file in the folder, or in a folder of it, does.

    At most STAMPED_FILES_LIMIT files count, and none whose name begins with a dot or `__`, such as caches. The process
    engine runs the files themselves.
    """
    files = itertools.islice(_walk_files(folder), STAMPED_FILES_LIMIT)
    return hash(tuple((file.path, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]))


def find_folder_digest(folder: Path) -> str | None:
    """Return the digest of the files in the folder; None if they are too many, too large or cannot be read. Blocking.

    They are read again only after a change. Names that begin with a dot or `__` do not count, as for the stamp.
    """
    try:
        paths = itertools.islice(_walk_files(folder, SOURCE_DEPTH_LIMIT), STAMPED_FILES_LIMIT + 1)
        files = tuple(_SourceFile.look_at(entry) for entry in paths)
        if len(files) > STAMPED_FILES_LIMIT or sum(file.size for file in files) > SOURCE_LIMIT_BYTES:
            return None
        return _hash_folder(str(folder), files)
    except OSError:
        return None


class _SourceFile(NamedTuple):
    """A file of the folder. An image that is built from it has its content, and whether it can be executed."""

    path: str
    size: int
    mtime_ns: int
    is_executable: bool

    @classmethod
    def look_at(cls, entry: os.DirEntry[str]) -> "_SourceFile":
        found = entry.stat()
        return cls(entry.path, found.st_size, found.st_mtime_ns, bool(found.st_mode & stat.S_IXUSR))


@functools.lru_cache(maxsize=HOST_ENDPOINTS_LIMIT)
def _hash_folder(folder: str, files: tuple[_SourceFile, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
        digest.update(f"{content} {file.is_executable} {os.path.relpath(file.path, folder)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _walk_files(folder: Path, depth: int = 2) -> Iterator[os.DirEntry[str]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_file():
            yield entry
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _walk_files(Path(entry.path), depth - 1)


def group_by_pool(endpoints: Mapping[str, LocalEndpoint]) -> Mapping[str, tuple[Endpoint, ...]]:
    """Return the endpoints of each pool."""
    pools: dict[str, tuple[Endpoint, ...]] = {}
    for endpoint in endpoints.values():
        pools[endpoint.config.effective_pool] = (*pools.get(endpoint.config.effective_pool, ()), endpoint.config)
    return pools


def container_spec(
    endpoint: LocalEndpoint,
    identity: ContainerIdentity,
    job_dir: Path,
    gpus: tuple[str, ...],
    mounts: tuple[FolderMount, ...] = (),
) -> ContainerSpec:
    """Return the spec of a container of this endpoint on these GPUs."""
    resources = endpoint.config.resources
    return ContainerSpec(
        identity=identity,
        image=endpoint.image.id if endpoint.image else endpoint.config.image,
        folder=str(endpoint.folder),
        command=endpoint.config.process.command if endpoint.config.process else (),
        job_dir=job_dir,
        limits=ContainerLimits(resources.memory_mb, resources.cpus, shm_mb=resources.shm_mb),
        gpus=gpus,
        runtime=endpoint.config.runtime,
        egress=endpoint.config.egress,
        network_image=endpoint.network_image.id if endpoint.network_image else None,
        mounts=mounts,
        env=endpoint.config.env,
    )
