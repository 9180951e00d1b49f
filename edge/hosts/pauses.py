"""Paused endpoints and hosts in maintenance, as last read from PAUSES."""

from contextlib import suppress

from anyio import Lock

from bus.interface import Bus, RevisionConflict
from edge.core.clock import Clock
from schemas.installation import Pause, endpoint_pause_key, maintenance_key


class PauseRegistry:
    """The pauses of all edges. Those that this edge sets or ends are known at once, others after `refresh`."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._table = bus.pauses
        self._clock = clock
        self._pauses: dict[str, Pause] = {}
        self._lock = Lock()  # a read that began before a write of this edge must not replace what was written

    async def refresh(self) -> None:
        """Read the rows, which another edge may have changed. Raises BusError."""
        async with self._lock:
            await self._read()

    async def _read(self) -> None:
        self._pauses = {key: row.value for key, row in (await self._table.rows()).items()}

    def of_endpoint(self, endpoint: str) -> Pause | None:
        """Return the pause of an endpoint; None if it is not paused."""
        return self._pauses.get(endpoint_pause_key(endpoint))

    def of_host(self, host: str) -> Pause | None:
        """Return since when and by whom a host is in maintenance; None if it is not."""
        return self._pauses.get(maintenance_key(host))

    @property
    def hosts_in_maintenance(self) -> frozenset[str]:
        """The hosts in maintenance, also those that were never seen."""
        prefix = maintenance_key("")
        return frozenset(key.removeprefix(prefix) for key in self._pauses if key.startswith(prefix))

    async def pause_endpoint(self, endpoint: str, by: str) -> None:
        """Pause an endpoint. One that is paused already stays so. Raises BusError."""
        await self._create(endpoint_pause_key(endpoint), by)

    async def resume_endpoint(self, endpoint: str) -> None:
        """End the pause of an endpoint, if it is paused. Raises BusError."""
        await self._delete(endpoint_pause_key(endpoint))

    async def start_maintenance(self, host: str, by: str) -> None:
        """Put a host into maintenance. One that is in maintenance already stays so. Raises BusError."""
        await self._create(maintenance_key(host), by)

    async def end_maintenance(self, host: str) -> None:
        """End the maintenance of a host, if it is in maintenance. Raises BusError."""
        await self._delete(maintenance_key(host))

    async def _create(self, key: str, by: str) -> None:
        async with self._lock:
            with suppress(RevisionConflict):  # the first pause tells since when
                await self._table.create(key, Pause(self._clock(), by))
            await self._read()

    async def _delete(self, key: str) -> None:
        async with self._lock:
            await self._table.delete(key)
            await self._read()
