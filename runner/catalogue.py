"""The kinds of job this host has an image folder for: `endpoint.toml` in the folders named, or one level below."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from bus.input_schema import check_input_schema
from schemas.endpoint import Endpoint, EndpointInvalid, parse

FILE = "endpoint.toml"


class Kind(Struct, frozen=True):
    """An endpoint and the folder that defines it (the process engine runs the image there)."""

    endpoint: Endpoint
    folder: Path


def load(places: Iterable[Path]) -> Mapping[str, Kind]:
    """Kinds by name. Raises EndpointInvalid naming the file, also when two folders define one name or one has none."""
    kinds: dict[str, Kind] = {}
    for place in places:
        files = sorted([*place.glob(FILE), *place.glob(f"*/{FILE}")])
        if not files:
            raise EndpointInvalid(f"no {FILE} lies in {place} or a folder of it: set `endpoints` to folders of images")
        for path in files:
            kind = _read(path)
            if kind.endpoint.name in kinds:
                other = kinds[kind.endpoint.name].folder
                raise EndpointInvalid(f"{path}: endpoint {kind.endpoint.name} is also defined in {other}: rename one")
            kinds[kind.endpoint.name] = kind
    return kinds


def _read(path: Path) -> Kind:
    try:
        endpoint = parse(path.read_text(encoding="utf-8"))
        check_input_schema(endpoint.input)
        return Kind(endpoint, path.parent.resolve())
    except (EndpointInvalid, OSError) as error:
        raise EndpointInvalid(f"{path}: {error}") from error


def by_pool(kinds: Mapping[str, Kind]) -> Mapping[str, tuple[Endpoint, ...]]:
    """The endpoints whose jobs wait in each pool."""
    pools: dict[str, tuple[Endpoint, ...]] = {}
    for kind in kinds.values():
        pools[kind.endpoint.queue] = (*pools.get(kind.endpoint.queue, ()), kind.endpoint)
    return pools
