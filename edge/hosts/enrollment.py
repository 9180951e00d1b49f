"""Second machines: let in by one line, and put out again at once, broker and files together (DESIGN 6)."""

from contextlib import suppress
from typing import Protocol

import structlog
from anyio import Lock
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import Bus, BusError, RevisionConflict, RowUnreadable
from bus.nats.users import runner_user_name
from bus.server.host_accounts import BrokerReloadFailed, hash_password, is_password_hash, new_password
from edge.core.clock import Clock
from edge.owners.api_keys import ApiKeyStore
from schemas.auth import Scope
from schemas.enrollment import EnrolledHost, JoinToken
from schemas.problems import ProblemError

_log = structlog.get_logger()


class BrokerAccounts(Protocol):
    """The broker's list of hosts. `bus.server.host_accounts.HostAccounts` is one."""

    async def replace_all(self, hashes: dict[str, str]) -> None:
        """Let in exactly these hosts, each with its hashed password, and return when that is so. Raises NotReloaded."""
        ...


class AdvertisedAddresses(Struct, frozen=True, kw_only=True):
    """Where a host that joins finds us, and the certificates it will meet there (sha256; None: any that is trusted)."""

    edge: str
    broker: str
    edge_pin: str | None = None
    broker_pin: str | None = None


class HostEnrollment:
    """Who has joined, in JOINED. Without a door and a welcome nobody can."""

    def __init__(
        self,
        bus: Bus,
        keys: ApiKeyStore,
        door: BrokerAccounts | None,
        welcome: AdvertisedAddresses | None,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._broker_accounts = door
        self._addresses = welcome
        self._clock = clock
        self._sync_lock = Lock()

    def _require_enabled(self) -> tuple[BrokerAccounts, AdvertisedAddresses]:
        if self._broker_accounts is None or self._addresses is None:
            why = "no other machine can join here: start `lamplighter up` with --public NAME"
            settings = "url and broker of [public], and nats_conf_dir and reload_command of [enrollment]"
            raise ProblemError("unavailable", f"{why}, or set {settings}")
        return self._broker_accounts, self._addresses

    async def start(self) -> None:
        """Make the broker's list what JOINED says: an edge may have died between the two.

        Rows of an earlier release hold passwords, and their keys name no host. Afterwards the rows hold hashes, and
        each key names its host.
        """
        rows = await self._bus.enrolled_hosts.rows()
        for host, row in rows.items():
            try:
                await self._keys.bind(row.value.key_id, host)
            except BusError as error:  # a full broker, say: the key works on, for the jobs of all hosts
                _log.error("host_key_not_bound", host=host, error=str(error))
            if not is_password_hash(row.value.password):
                with suppress(RevisionConflict):  # another edge did it
                    joined = replace(row.value, password=hash_password(row.value.password))
                    await self._bus.enrolled_hosts.update(host, joined, row.revision)
        if self._broker_accounts is not None and rows:
            try:
                await self._sync_broker_accounts(self._broker_accounts)
            except (BusError, ProblemError) as error:
                _log.error("hosts_not_let_in", error=str(error))

    async def add(self, host: str) -> JoinToken:
        """Let `host` in; its token's content. Raises Refused `conflict`, `unavailable`; BusError."""
        door, welcome = self._require_enabled()
        if await self._bus.enrolled_hosts.keys(host):
            raise ProblemError("conflict", f"{host} has joined already: `lamplighter hosts remove {host}` first")
        made = await self._keys.create(host, (Scope.RUNNER,), name=f"host {host}", host=host)
        password = new_password()
        joined = EnrolledHost(host=host, password=hash_password(password), key_id=made.key.id, at=self._clock())
        try:
            await self._bus.enrolled_hosts.create(host, joined)
        except RevisionConflict as error:
            await self._keys.revoke(made.key.id)
            raise ProblemError("conflict", f"{host} is joining at this moment: try again") from error
        try:
            await self._sync_broker_accounts(door)
        except (BusError, ProblemError):
            await self._revoke_key(joined)
            await self._bus.enrolled_hosts.delete(host)
            raise
        return JoinToken(
            host=host,
            edge=welcome.edge,
            broker=welcome.broker,
            user=runner_user_name(host),
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
        door, _ = self._require_enabled()
        try:
            row = await self._bus.enrolled_hosts.get(host)
        except RowUnreadable:
            row = None
        if row is not None:
            await self._revoke_key(row.value)
            # The row goes last: a broker that does not listen now is told again when this is asked for again.
            await self._bus.enrolled_hosts.put(host, replace(row.value, is_being_removed=True))
        elif not await self._bus.enrolled_hosts.keys(host):
            raise ProblemError("not_found", f"{host} has not joined")
        await self._sync_broker_accounts(door)
        await self._bus.heartbeats.delete(host)
        await self._bus.capabilities.delete(host)
        await self._clear_power_override(host)
        await self._bus.enrolled_hosts.delete(host)

    async def _clear_power_override(self, host: str) -> None:
        """Take back a wish to keep its power on or off: nobody would ever ask for that machine's power again."""
        while True:
            row = (await self._bus.power_records.rows()).get(host)
            if row is None or row.value.override is None:
                return
            with suppress(RevisionConflict):
                await self._bus.power_records.update(host, replace(row.value, override=None), row.revision)

    async def _revoke_key(self, joined: EnrolledHost) -> None:
        with suppress(ProblemError):  # an earlier try may have come as far as this
            await self._keys.revoke(joined.key_id)

    async def _password_hashes(self) -> dict[str, str]:
        rows = await self._bus.enrolled_hosts.rows()
        return {
            host: row.value.password
            for host, row in rows.items()
            if not row.value.is_being_removed and is_password_hash(row.value.password)
        }

    async def _sync_broker_accounts(self, door: BrokerAccounts) -> None:
        """Make the broker's list what JOINED says, and what it says by then: of two edges one may have missed a row."""
        async with self._sync_lock:
            told = None
            while told != (hashes := await self._password_hashes()):
                try:
                    await door.replace_all(hashes)
                except BrokerReloadFailed as error:
                    raise ProblemError("unavailable", str(error)) from error
                told = hashes
