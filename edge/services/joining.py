"""Second machines: let in by one line, and put out again at once, broker and files together (DESIGN 6)."""

from contextlib import suppress
from typing import Protocol

import structlog
from anyio import Lock
from msgspec import Struct
from msgspec.structs import replace

from bus.port import Bus, BusError, Conflict, Unreadable
from bus.roster import NotReloaded, hashed, is_hashed, new_password
from bus.users import runner_name
from edge.services.clock import Clock
from edge.services.keys import Keys
from schemas.access import Scope
from schemas.errors import Refused
from schemas.joining import Invitation, Joined

_log = structlog.get_logger()


class Door(Protocol):
    """The broker's list of hosts. `bus.roster.Roster` is one."""

    async def write(self, hashes: dict[str, str]) -> None:
        """Let in exactly these hosts, each with its hashed password, and return when that is so. Raises NotReloaded."""
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
        self._turn = Lock()

    def _open(self) -> tuple[Door, Welcome]:
        if self._door is None or self._welcome is None:
            why = "no other machine can join here: start `lamplighter up` with --public NAME"
            raise Refused("unavailable", f"{why}, or set [public] url and broker and [joining] folder and reload")
        return self._door, self._welcome

    async def start(self) -> None:
        """Make the broker's list what JOINED says: an edge may have died between the two.

        Rows of an earlier release hold passwords, and their keys name no host. Afterwards the rows hold hashes, and
        each key names its host.
        """
        rows = await self._bus.joined.rows()
        for host, row in rows.items():
            try:
                await self._keys.bind(row.value.key_id, host)
            except BusError as error:  # a full broker, say: the key works on, for the jobs of all hosts
                _log.error("host_key_not_bound", host=host, error=str(error))
            if not is_hashed(row.value.password):
                with suppress(Conflict):  # another edge did it
                    joined = replace(row.value, password=hashed(row.value.password))
                    await self._bus.joined.update(host, joined, row.revision)
        if self._door is not None and rows:
            try:
                await self._tell(self._door)
            except (BusError, Refused) as error:
                _log.error("hosts_not_let_in", error=str(error))

    async def add(self, host: str) -> Invitation:
        """Let `host` in; its token's content. Raises Refused `conflict`, `unavailable`; BusError."""
        door, welcome = self._open()
        if await self._bus.joined.keys(host):
            raise Refused("conflict", f"{host} has joined already: `lamplighter hosts remove {host}` first")
        made = await self._keys.create(host, (Scope.RUNNER,), name=f"host {host}", host=host)
        password = new_password()
        joined = Joined(host=host, password=hashed(password), key_id=made.key.id, at=self._clock())
        try:
            await self._bus.joined.create(host, joined)
        except Conflict as error:
            await self._keys.revoke(made.key.id)
            raise Refused("conflict", f"{host} is joining at this moment: try again") from error
        try:
            await self._tell(door)
        except (BusError, Refused):
            await self._revoke(joined)
            await self._bus.joined.delete(host)
            raise
        return Invitation(
            host=host,
            edge=welcome.edge,
            broker=welcome.broker,
            user=runner_name(host),
            password=password,
            key=made.text,
            edge_pin=welcome.edge_pin,
            broker_pin=welcome.broker_pin,
        )

    async def remove(self, host: str) -> None:
        """Put `host` out, with everything that it has or said as a host. Raises Refused `not_found`; BusError.

        These are its key, its broker account and every connection of it, its presence, its offer, and a standing wish
        for its power.
        """
        door, _ = self._open()
        try:
            row = await self._bus.joined.get(host)
        except Unreadable:
            row = None
        if row is not None:
            await self._revoke(row.value)
            # The row goes last: a broker that does not listen now is told again when this is asked for again.
            await self._bus.joined.put(host, replace(row.value, leaving=True))
        elif not await self._bus.joined.keys(host):
            raise Refused("not_found", f"{host} has not joined")
        await self._tell(door)
        await self._bus.hosts.delete(host)
        await self._bus.offers.delete(host)
        await self._release(host)
        await self._bus.joined.delete(host)

    async def _release(self, host: str) -> None:
        """Take back a wish to keep its power on or off: nobody would ever ask for that machine's power again."""
        while True:
            row = (await self._bus.power.rows()).get(host)
            if row is None or row.value.hold is None:
                return
            with suppress(Conflict):
                await self._bus.power.update(host, replace(row.value, hold=None), row.revision)

    async def _revoke(self, joined: Joined) -> None:
        with suppress(Refused):  # an earlier try may have come as far as this
            await self._keys.revoke(joined.key_id)

    async def _hashes(self) -> dict[str, str]:
        rows = await self._bus.joined.rows()
        return {
            host: row.value.password
            for host, row in rows.items()
            if not row.value.leaving and is_hashed(row.value.password)
        }

    async def _tell(self, door: Door) -> None:
        """Make the broker's list what JOINED says, and what it says by then: of two edges one may have missed a row."""
        async with self._turn:
            told = None
            while told != (hashes := await self._hashes()):
                try:
                    await door.write(hashes)
                except NotReloaded as error:
                    raise Refused("unavailable", str(error)) from error
                told = hashes
