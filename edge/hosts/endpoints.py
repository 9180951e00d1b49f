"""The known endpoints: those that hosts offer or have offered, and those of the edge's own folder."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from anyio import to_thread
from msgspec import structs

from bus.input_schema import check_input_schema
from bus.interface import Bus
from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint
from schemas.host import HOST_ENDPOINTS_LIMIT, HostCapabilities
from schemas.job import JobProgram, is_too_deep
from schemas.problems import ProblemError
from schemas.texts import Language

_VALUES = frozenset({"default", "const", "enum", "examples"})  # keywords of JSON Schema that hold no schema

_log = structlog.get_logger()


def load_endpoints(path: Path) -> tuple[Endpoint, ...]:
    """Load `*.toml` and `*/endpoint.toml` in `path`, sorted by name. Raises EndpointInvalid, which names the file."""
    found = sorted([*path.glob("*.toml"), *path.glob("*/endpoint.toml")])
    return tuple(sorted((_load_file(file) for file in found), key=lambda endpoint: endpoint.name))


def _load_file(file: Path) -> Endpoint:
    try:
        endpoint = parse_endpoint(file.read_text())
        check_input_schema(endpoint.input)
    except EndpointInvalid as error:
        raise EndpointInvalid(f"{file}: {error}") from error
    return endpoint


class EndpointRegistry:
    """The known endpoints. The newest offer of an endpoint has precedence, and any offer precedes the folder."""

    def __init__(self, bus: Bus, folder_endpoints: tuple[Endpoint, ...]) -> None:
        self._bus = bus
        self._folder = {endpoint.name: endpoint for endpoint in folder_endpoints}
        self._capabilities: dict[str, HostCapabilities] = {}
        # By pool and by endpoint, from the offers: a submit asks for each several times.
        self._slots: Mapping[str, int] = {}
        self._offering: Mapping[str, frozenset[str]] = {}
        self._unmet: Mapping[str, dict[str, str]] = {}
        self._revisions: dict[str, int] | None = None
        self._known: Mapping[str, Endpoint] = self._folder
        self._ensured_pools: frozenset[str] = frozenset()
        self._checked: Mapping[bytes, str | None] = {}  # schema as JSON -> why it is invalid
        self._rejected: dict[str, str] = {}  # endpoint -> why it is not used

    async def refresh(self) -> bool:
        """Read OFFERS and create the consumers of new pools. Return whether anything changed. Raises BusError."""
        rows = await self._bus.capabilities.rows()
        revisions = {host: row.revision for host, row in rows.items()}
        changed = revisions != self._revisions
        if changed:
            self._capabilities = {host: _limit_endpoints(row.value) for host, row in rows.items()}
            self._slots = _count_slots(self._capabilities.values())
            self._offering = _group_hosts(self._capabilities)
            self._unmet = _group_unmet(self._capabilities)
            newest = await self._newest()
            self._known = {**self._folder, **newest}
        pools = self.pools()
        if pools - self._ensured_pools:
            await self._bus.job_queue.ensure_consumers(pools)
            self._ensured_pools = pools
        self._revisions = revisions
        return changed

    async def _newest(self) -> dict[str, Endpoint]:
        """Return the endpoints of all offers, each from the newest offer in which its schema is valid.

        Each schema is checked once while it is offered, in a thread.
        """
        known: dict[str, Endpoint] = {}
        checked: dict[bytes, str | None] = {}
        rejected: dict[str, str] = {}
        for offer in sorted(self._capabilities.values(), key=lambda offer: offer.at):
            for endpoint in offer.endpoints:
                schema = b"" if is_too_deep(endpoint.input) else msgspec.json.encode(endpoint.input)
                if schema in self._checked:
                    checked[schema] = self._checked[schema]
                elif schema not in checked:
                    checked[schema] = await to_thread.run_sync(_schema_error, endpoint.input)
                error_text = checked[schema]
                if error_text is None:
                    known[endpoint.name] = endpoint
                else:
                    rejected[endpoint.name] = error_text
                    if schema not in self._checked:
                        _log.warning(
                            "endpoint_offer_rejected", host=offer.host, endpoint=endpoint.name, error=error_text
                        )
        self._checked, self._rejected = checked, rejected
        return known

    def find(self, name: str) -> Endpoint | None:
        """Return the endpoint with this name, or None if it is unknown."""
        return self._known.get(name)

    def get(self, name: str) -> Endpoint:
        """Return the endpoint with this name. Raises ProblemError `endpoint_unknown`."""
        endpoint = self.find(name)
        if endpoint is None:
            if name in self._rejected:
                raise ProblemError(
                    "endpoint_unknown", f"a host offers {name!r}, but its schema is not valid: {self._rejected[name]}"
                )
            known = ", ".join(sorted(self._known)) or "none yet"
            raise ProblemError("endpoint_unknown", f"no host offers the endpoint {name!r}; known: {known}")
        return endpoint

    def all(self) -> tuple[Endpoint, ...]:
        """Return all known endpoints, sorted by name."""
        return tuple(self._known[name] for name in sorted(self._known))

    def pools(self) -> frozenset[str]:
        """Return the pools in which jobs of known endpoints wait."""
        return frozenset(endpoint.effective_pool for endpoint in self._known.values())

    def host_capabilities(self) -> tuple[HostCapabilities, ...]:
        """Return the latest offer of each host, sorted by host."""
        return tuple(self._capabilities[host] for host in sorted(self._capabilities))

    def capabilities_of(self, host: str) -> HostCapabilities | None:
        """Return the latest offer of a host; None if it never made one."""
        return self._capabilities.get(host)

    def offered_slots(self, pool: str) -> int:
        """Return how many slots hosts last offered to `pool`; 0 if no host ever offered it."""
        return self._slots.get(pool, 0)

    def offered_by(self, host: str) -> tuple[str, ...]:
        """Return the names of the endpoints in the host's latest offer, sorted."""
        offer = self._capabilities.get(host)
        return tuple(sorted(endpoint.name for endpoint in offer.endpoints)) if offer else ()

    def find_offered(self, host: str, name: str) -> Endpoint | None:
        """Return the endpoint as this host offers it; None if its latest offer does not have it."""
        offer = self._capabilities.get(host)
        return next((endpoint for endpoint in offer.endpoints if endpoint.name == name), None) if offer else None

    def programs(self, endpoint: str) -> dict[str, JobProgram]:
        """Return what a job of `endpoint` runs on each host that told, by host."""
        return {
            host: offer.programs[endpoint]
            for host, offer in sorted(self._capabilities.items())
            if endpoint in offer.programs
        }

    def sources(self, endpoint: str) -> dict[str, str]:
        """Return the digests of the folders of `endpoint` on the hosts whose program came from no registry."""
        return {
            host: offer.sources[endpoint]
            for host, offer in sorted(self._capabilities.items())
            if endpoint in offer.sources
        }

    def unmet(self, endpoint: str) -> dict[str, str]:
        """Return the hosts that offer `endpoint` and do not meet its requirements, each with what it lacks."""
        return self._unmet.get(endpoint, {})

    def hosts_offering(self, endpoint: str) -> frozenset[str]:
        """Return the hosts whose latest offer has `endpoint`, online or not."""
        return self._offering.get(endpoint, frozenset())


def _count_slots(offers: Iterable[HostCapabilities]) -> dict[str, int]:
    """Return the slots that the hosts of each pool offer together."""
    slots: Counter[str] = Counter()
    for offer in offers:
        slots.update(dict.fromkeys({endpoint.effective_pool for endpoint in offer.endpoints}, offer.slots))
    return dict(slots)


def _group_hosts(offers: Mapping[str, HostCapabilities]) -> dict[str, frozenset[str]]:
    """Return the hosts that offer each endpoint."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for host, offer in offers.items():
        for endpoint in offer.endpoints:
            found[endpoint.name].add(host)
    return {endpoint: frozenset(hosts) for endpoint, hosts in found.items()}


def _group_unmet(offers: Mapping[str, HostCapabilities]) -> dict[str, dict[str, str]]:
    """Return what each host lacks that offers an endpoint and does not meet its requirements, by endpoint."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for host, offer in sorted(offers.items()):
        for endpoint in {own.name for own in offer.endpoints} & offer.unmet.keys():
            found[endpoint][host] = offer.unmet[endpoint]
    return dict(found)


def _limit_endpoints(offer: HostCapabilities) -> HostCapabilities:
    """Return the offer with its first HOST_ENDPOINTS_LIMIT endpoints. A runner of this release never offers more."""
    offered = len(offer.endpoints)
    if offered <= HOST_ENDPOINTS_LIMIT:
        return offer
    _log.warning("host_endpoints_limited", host=offer.host, offered=offered, limit=HOST_ENDPOINTS_LIMIT)
    return structs.replace(offer, endpoints=offer.endpoints[:HOST_ENDPOINTS_LIMIT])


def do_programs_differ(programs: Mapping[str, JobProgram], sources: Mapping[str, str]) -> bool:
    """Return whether two hosts run an endpoint differently. An unknown digest agrees with every other.

    Two hosts that build an image from the same files get different ids. So if all hosts have reported the digest of the
    folder that they built from (`sources`), these digests are compared and not the ids.
    """
    files = {program.endpoint_digest for program in programs.values()} - {None}
    images = {host: program.image_digest for host, program in programs.items() if program.image_digest is not None}
    if len(files) > 1:
        return True
    if images and len(set(images.values())) == 1:
        return False
    if images.keys() <= sources.keys():
        return len(set(sources.values())) > 1
    return len(set(images.values())) > 1


def localize_schema(schema: Any, language: Language) -> Any:
    """Return a JSON Schema with its titles and descriptions in `language`, and in both languages beside them.

    `title_zh` and `description_zh` are the Chinese ones. JSON Schema ignores keywords that it does not know.
    """
    if isinstance(schema, list):
        return [localize_schema(inner, language) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    shown = {name: value if name in _VALUES else localize_schema(value, language) for name, value in schema.items()}
    for name in ("title", "description"):
        english, chinese = schema.get(name), schema.get(f"{name}_zh")
        if isinstance(english, str) and isinstance(chinese, str):
            shown |= {name: chinese if language is Language.ZH else english, f"{name}_en": english}
    return shown


def _schema_error(schema: dict[str, Any]) -> str | None:
    """Return why `schema` is not valid, or None if it is."""
    try:
        check_input_schema(schema)
    except EndpointInvalid as error:
        return str(error)
    return None
