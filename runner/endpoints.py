"""The kinds of job this host has an image folder for: `endpoint.toml` in the folders named, or one level below."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from bus.input_schema import check_input_schema
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec
from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint

ENDPOINT_FILE = "endpoint.toml"


class LocalEndpoint(Struct, frozen=True):
    """An endpoint and the folder that defines it (the process engine runs the image there)."""

    config: Endpoint
    folder: Path


def load_endpoints(places: Iterable[Path]) -> Mapping[str, LocalEndpoint]:
    """Kinds by name. Raises EndpointInvalid naming the file, also when two folders define one name or one has none."""
    kinds: dict[str, LocalEndpoint] = {}
    for place in places:
        files = sorted([*place.glob(ENDPOINT_FILE), *place.glob(f"*/{ENDPOINT_FILE}")])
        if not files:
            raise EndpointInvalid(
                f"no {ENDPOINT_FILE} lies in {place} or a folder of it: set `endpoints` to folders of images"
            )
        for path in files:
            kind = _load_endpoint(path)
            if kind.config.name in kinds:
                other = kinds[kind.config.name].folder
                raise EndpointInvalid(f"{path}: endpoint {kind.config.name} is also defined in {other}: rename one")
            kinds[kind.config.name] = kind
    return kinds


def _load_endpoint(path: Path) -> LocalEndpoint:
    try:
        endpoint = parse_endpoint(path.read_text(encoding="utf-8"))
        check_input_schema(endpoint.input)
        return LocalEndpoint(endpoint, path.parent.resolve())
    except (EndpointInvalid, OSError) as error:
        raise EndpointInvalid(f"{path}: {error}") from error


def group_by_pool(kinds: Mapping[str, LocalEndpoint]) -> Mapping[str, tuple[Endpoint, ...]]:
    """The endpoints whose jobs wait in each pool."""
    pools: dict[str, tuple[Endpoint, ...]] = {}
    for kind in kinds.values():
        pools[kind.config.effective_pool] = (*pools.get(kind.config.effective_pool, ()), kind.config)
    return pools


def container_spec(
    kind: LocalEndpoint, identity: ContainerIdentity, job_dir: Path, gpus: tuple[str, ...]
) -> ContainerSpec:
    """The container of this kind, on these cards."""
    wants = kind.config.resources
    return ContainerSpec(
        identity=identity,
        image=kind.config.image,
        folder=str(kind.folder),
        command=kind.config.process.command if kind.config.process else (),
        job_dir=job_dir,
        limits=ContainerLimits(wants.memory_mb, wants.cpus, shm_mb=wants.shm_mb),
        gpus=gpus,
    )
