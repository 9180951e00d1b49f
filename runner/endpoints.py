"""The endpoints of this host: `endpoint.toml` in each configured folder, or in a folder one level below it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from bus.input_schema import check_input_schema
from runner.engines.image_port import LocalImage
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec
from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint
from schemas.host import HOST_ENDPOINTS_LIMIT, HOST_ENDPOINTS_LIMIT_BYTES

ENDPOINT_FILE = "endpoint.toml"


class LocalEndpoint(Struct, frozen=True):
    """An endpoint, and the folder that defines it. The process engine runs the image in that folder.

    `image`: what the engine has under the endpoint's image name, as last seen; None if it has nothing, or no images.
    """

    config: Endpoint
    folder: Path
    image: LocalImage | None = None


def load_endpoints(folders: Iterable[Path]) -> Mapping[str, LocalEndpoint]:
    """Return the endpoints by name.

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
    _check_limits(endpoints)
    return endpoints


def _check_limits(endpoints: Mapping[str, LocalEndpoint]) -> None:
    remedy = "set `endpoints` to fewer folders, and run the others on another host"
    if len(endpoints) > HOST_ENDPOINTS_LIMIT:
        raise EndpointInvalid(f"this host defines {len(endpoints)} endpoints, at most {HOST_ENDPOINTS_LIMIT}: {remedy}")
    size = len(msgspec.json.encode([endpoint.config for endpoint in endpoints.values()]))
    if size > HOST_ENDPOINTS_LIMIT_BYTES:
        raise EndpointInvalid(
            f"the endpoints of this host have {size} bytes of JSON, at most {HOST_ENDPOINTS_LIMIT_BYTES}: {remedy}"
        )


def _load_endpoint(path: Path) -> LocalEndpoint:
    try:
        endpoint = parse_endpoint(path.read_text(encoding="utf-8"))
        check_input_schema(endpoint.input)
        return LocalEndpoint(endpoint, path.parent.resolve())
    except (EndpointInvalid, OSError) as error:
        raise EndpointInvalid(f"{path}: {error}") from error


def group_by_pool(endpoints: Mapping[str, LocalEndpoint]) -> Mapping[str, tuple[Endpoint, ...]]:
    """Return the endpoints of each pool."""
    pools: dict[str, tuple[Endpoint, ...]] = {}
    for endpoint in endpoints.values():
        pools[endpoint.config.effective_pool] = (*pools.get(endpoint.config.effective_pool, ()), endpoint.config)
    return pools


def container_spec(
    endpoint: LocalEndpoint, identity: ContainerIdentity, job_dir: Path, gpus: tuple[str, ...]
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
    )
