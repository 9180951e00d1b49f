"""Second machines: let in by one line, and put out again at once, broker and files together (DESIGN 6)."""

from contextlib import suppress
from typing import Protocol

import structlog
from anyio import fail_after, sleep
from msgspec import Struct
from msgspec.structs import replace

from bus.port import Bus, BusError, Conflict, Unreachable
from bus.roster import new_password
from bus.users import runner_name
from edge.services.clock import Clock
from edge.services.keys import Keys
from schemas.access import Scope
from schemas.errors import Refused
from schemas.joining import Invitation, Joined

TAKEN_S = 10.0
AGAIN_S = 0.05

_log = structlog.get_logger()


class Door(Protocol):
    """The broker's list of hosts. `bus.roster.Roster` is one."""

    async def write(self, passwords: dict[str, str]) -> None:
        """Let in exactly these hosts. Raises NotReloaded."""
        ...

    async def admits(self, host: str, password: str) -> bool:
        """Whether the broker does. Raises Unreachable."""
        ...


class Welcome(Struct, frozen=True, kw_only=True):
    """Where a host that joins finds us, and the certificates it will meet there (sha256; None: any that is trusted)."""

    edge: str
    broker: str
    edge_pin: str | None = None
    broker_pin: str | None = None


class Joining:
    """Who has joined, in JOINED. Without a door and a welcome nobody can."""

    def __init__(self, bus: Bus, keys: Keys, door: Door | None, welcome: Welcome | None, clock: Clock) -> None:
        self._bus = bus
        self._keys = keys
        self._door = door
        self._welcome = welcome
        self._clock = clock

    def _open(self) -> tuple[Door, Welcome]:
        if self._door is None or self._welcome is None:
            why = "no other machine can join here: start `lamplighter up` with --public NAME"
            raise Refused("unavailable", f"{why}, or set [public] url and broker and [joining] folder and reload")
        return self._door, self._welcome

    async def start(self) -> None:
        """Make the broker's list what JOINED says: an edge may have died between the two."""
        if self._door is not None and await self._bus.joined.rows():
            try:
                await self._door.write(await self._passwords())
            except BusError as error:
                _log.error("hosts_not_let_in", error=str(error))

    async def add(self, host: str) -> Invitation:
        """Let `host` in; its token's content. Raises Refused `conflict`, `unavailable`; BusError."""
        door, welcome = self._open()
        if await self._bus.joined.get(host) is not None:
            raise Refused("conflict", f"{host} has joined already: `lamplighter hosts remove {host}` first")
        made = await self._keys.create(host, (Scope.RUNNER,), name=f"host {host}")
        joined = Joined(host=host, password=new_password(), key_id=made.key.id, at=self._clock())
        try:
            await self._bus.joined.create(host, joined)
        except Conflict as error:
            await self._keys.revoke(made.key.id)
            raise Refused("conflict", f"{host} is joining at this moment: try again") from error
        try:
            await self._until(door, joined, admitted=True)
        except (BusError, Refused):
            await self._forget(joined)
            raise
        return Invitation(
            host=host,
            edge=welcome.edge,
            broker=welcome.broker,
            user=runner_name(host),
            password=joined.password,
            key=made.text,
            edge_pin=welcome.edge_pin,
            broker_pin=welcome.broker_pin,
        )

    async def remove(self, host: str) -> None:
        """Put `host` out: its key, its broker user and every connection of it. Raises Refused `not_found`; BusError."""
        door, _ = self._open()
        row = await self._bus.joined.get(host)
        if row is None:
            raise Refused("not_found", f"{host} has not joined")
        await self._revoke(row.value)
        # The row goes last: a broker that does not listen now is told again when this is asked for again.
        await self._bus.joined.put(host, replace(row.value, leaving=True))
        await self._until(door, row.value, admitted=False)
        await self._bus.hosts.delete(host)
        await self._bus.offers.delete(host)
        await self._bus.joined.delete(host)

    async def _forget(self, joined: Joined) -> None:
        await self._revoke(joined)
        await self._bus.joined.delete(joined.host)

    async def _revoke(self, joined: Joined) -> None:
        with suppress(Refused):  # an earlier try may have come as far as this
            await self._keys.revoke(joined.key_id)

    async def _passwords(self) -> dict[str, str]:
        rows = await self._bus.joined.rows()
        return {host: row.value.password for host, row in rows.items() if not row.value.leaving}

    async def _until(self, door: Door, joined: Joined, *, admitted: bool) -> None:
        """Have the list read until the broker acts on it: of two edges that write at once one may have missed a row."""
        try:
            with fail_after(TAKEN_S):
                await door.write(await self._passwords())
                while await self._admits(door, joined) is not admitted:
                    await sleep(AGAIN_S)
                    await door.write(await self._passwords())
        except TimeoutError as error:
            why = f"the broker has not taken over its new list of users in {TAKEN_S:.0f} s"
            raise Refused("unavailable", f"{why}: check its log, and that nats.conf includes users.conf") from error

    @staticmethod
    async def _admits(door: Door, joined: Joined) -> bool | None:
        """None: it hung up, before it had read who was there or before it was heard what it said. Ask again."""
        try:
            return await door.admits(joined.host, joined.password)
        except Unreachable:
            return None
