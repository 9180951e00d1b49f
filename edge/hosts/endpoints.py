"""What can be asked for: endpoints that hosts offer, or offered once, and those of the edge's own folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from anyio import to_thread

from bus.input_schema import check_input_schema
from bus.interface import Bus
from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint
from schemas.host import HostCapabilities
from schemas.job import is_too_deep
from schemas.problems import ProblemError

_log = structlog.get_logger()


def load_endpoints(path: Path) -> tuple[Endpoint, ...]:
    """The endpoints of `*.toml` and `*/endpoint.toml` in `path`, by name. Raises EndpointInvalid, naming the file."""
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
    """Known endpoints. Of two offers that differ the newest counts, and any offer counts before the folder."""

    def __init__(self, bus: Bus, folder_endpoints: tuple[Endpoint, ...]) -> None:
        self._bus = bus
        self._folder = {endpoint.name: endpoint for endpoint in folder_endpoints}
        self._capabilities: dict[str, HostCapabilities] = {}
        self._revisions: dict[str, int] | None = None
        self._known: Mapping[str, Endpoint] = self._folder
        self._ensured_pools: frozenset[str] = frozenset()
        self._checked: Mapping[bytes, str | None] = {}  # schema as JSON -> why it is refused
        self._set_aside: dict[str, str] = {}  # endpoint -> why no job can name it

    async def refresh(self) -> bool:
        """Read OFFERS and make the queues of new pools; whether anything changed. Raises BusError."""
        rows = await self._bus.capabilities.rows()
        revisions = {host: row.revision for host, row in rows.items()}
        changed = revisions != self._revisions
        if changed:
            self._capabilities = {host: row.value for host, row in rows.items()}
            newest = await self._newest()
            self._known = {**self._folder, **newest}
        pools = self.pools()
        if pools - self._ensured_pools:
            await self._bus.job_queue.ensure_consumers(pools)
            self._ensured_pools = pools
        self._revisions = revisions
        return changed

    async def _newest(self) -> dict[str, Endpoint]:
        """Return the endpoints of all offers, each as the newest offer says that has it with a schema that can be used.

        Schemas are checked in a thread, each once for as long as it is offered.
        """
        known: dict[str, Endpoint] = {}
        checked: dict[bytes, str | None] = {}
        set_aside: dict[str, str] = {}
        for offer in sorted(self._capabilities.values(), key=lambda offer: offer.at):
            for endpoint in offer.endpoints:
                schema = b"" if is_too_deep(endpoint.input) else msgspec.json.encode(endpoint.input)
                if schema in self._checked:
                    checked[schema] = self._checked[schema]
                elif schema not in checked:
                    checked[schema] = await to_thread.run_sync(_refusal, endpoint.input)
                fault = checked[schema]
                if fault is None:
                    known[endpoint.name] = endpoint
                else:
                    set_aside[endpoint.name] = fault
                    if schema not in self._checked:
                        _log.warning("offer_ignored", host=offer.host, endpoint=endpoint.name, error=fault)
        self._checked, self._set_aside = checked, set_aside
        return known

    def get(self, name: str) -> Endpoint:
        """The endpoint of that name. Raises Refused `endpoint_unknown`."""
        endpoint = self._known.get(name)
        if endpoint is None:
            if name in self._set_aside:
                raise ProblemError(
                    "endpoint_unknown", f"a host offers {name!r}, and it is refused: {self._set_aside[name]}"
                )
            known = ", ".join(sorted(self._known)) or "none yet"
            raise ProblemError("endpoint_unknown", f"no host offers the endpoint {name!r}; known: {known}")
        return endpoint

    def all(self) -> tuple[Endpoint, ...]:
        """Every known endpoint, by name."""
        return tuple(self._known[name] for name in sorted(self._known))

    def pools(self) -> frozenset[str]:
        """The queues that jobs of known endpoints wait in."""
        return frozenset(endpoint.effective_pool for endpoint in self._known.values())

    def host_capabilities(self) -> tuple[HostCapabilities, ...]:
        """The last offer of every host, by host."""
        return tuple(self._capabilities[host] for host in sorted(self._capabilities))

    def offered_slots(self, pool: str) -> int:
        """Slots that hosts last offered to `pool`, 0 when no host ever did."""
        return sum(
            offer.slots
            for offer in self._capabilities.values()
            if any(e.effective_pool == pool for e in offer.endpoints)
        )

    def offered_by(self, host: str) -> tuple[str, ...]:
        """The endpoints of the host's last offer, by name."""
        offer = self._capabilities.get(host)
        return tuple(sorted(endpoint.name for endpoint in offer.endpoints)) if offer else ()

    def hosts_offering(self, endpoint: str) -> frozenset[str]:
        """Hosts whose last offer has `endpoint`, alive or not."""
        return frozenset(
            host for host, offer in self._capabilities.items() if any(own.name == endpoint for own in offer.endpoints)
        )


def _refusal(schema: dict[str, Any]) -> str | None:
    """Return why no endpoint may have `schema`; None where one may."""
    try:
        check_input_schema(schema)
    except EndpointInvalid as error:
        return str(error)
    return None
