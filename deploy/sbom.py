"""A CycloneDX bill of materials of a folder of wheels: each file with its digest, and what requires what."""

import hashlib
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclass(frozen=True)
class Wheel:
    """A wheel as its file describes it."""

    name: str
    version: str
    license: str | None
    requirements: tuple[Requirement, ...]
    sha256: str

    def requires(self, extras: Collection[str]) -> Iterator[Requirement]:
        """Yield what it needs on this machine, with these extras."""
        for requirement in self.requirements:
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                yield requirement


@dataclass(frozen=True)
class NeededWheel:
    """A wheel in a set that is complete, and the names in that set which it requires."""

    wheel: Wheel
    requires: frozenset[str]


def read_wheel(file: Path) -> Wheel:
    """Read the metadata inside the file."""
    with zipfile.ZipFile(file) as archive:
        inner = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(inner).decode())
    return Wheel(
        canonicalize_name(metadata["Name"]),
        metadata["Version"],
        metadata["License-Expression"] or metadata["License"],
        tuple(Requirement(text) for text in metadata.get_all("Requires-Dist", ())),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def needed_by(root: str, wheels: Iterable[Wheel]) -> list[NeededWheel]:
    """Return the wheels that `root` needs, directly and indirectly, itself included."""
    by_name = {wheel.name: wheel for wheel in wheels}
    asked: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, set[str]] = {}
    open_requests = [(root, frozenset[str]())]
    while open_requests:
        request = open_requests.pop()
        name, extras = request
        if request in asked or name not in by_name:
            continue
        asked.add(request)
        required = {
            (canonicalize_name(requirement.name), frozenset(requirement.extras))
            for requirement in by_name[name].requires(extras)
        }
        found.setdefault(name, set()).update(name for name, _ in required)
        open_requests += required
    return [NeededWheel(by_name[name], frozenset(names & found.keys())) for name, names in found.items()]


def bill_of_materials(root: str, needed: Iterable[NeededWheel]) -> str:
    """Return the JSON of CycloneDX 1.6 for the distribution `root`. Raises ValueError if it does not fit the schema."""
    needed = list(needed)
    components = {one.wheel.name: _component(one.wheel) for one in needed}
    bom = Bom(components=[component for name, component in components.items() if name != root])
    bom.metadata.component = components[root]
    for one in needed:
        bom.register_dependency(components[one.wheel.name], [components[name] for name in sorted(one.requires)])
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise ValueError(f"the bill of materials of {root} does not fit the schema of CycloneDX: {fault.data.message}")
    return text + "\n"


def _component(wheel: Wheel) -> Component:
    first_line = (wheel.license or "").strip().partition("\n")[0]  # older metadata has the whole licence there
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{wheel.name}=={wheel.version}",
        purl=PackageURL("pypi", None, wheel.name, wheel.version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        licenses=[DisjunctiveLicense(name=first_line)] if first_line else (),
    )
