"""Host enrollment: give a new host a key and a broker account, and revoke both when it is removed."""

from contextlib import suppress
from typing import NamedTuple, Protocol

import structlog
from anyio import Lock
from msgspec import Struct
from msgspec.structs import replace

from bus.compare_and_set import update_row
from bus.interface import Bus, BusError, RevisionConflict, RowUnreadable, TableRow
from bus.nats.topology import runner_user_name
from bus.server.process import BrokerReloadFailed, hash_password, is_password_hash, new_password
from edge.core.clock import Clock
from edge.owners.api_keys import ApiKeyStore
from schemas.credentials import ApiKey, EnrolledHost, HostToken, JoinToken, RelayToken, Scope, SharedJoinToken
from schemas.installation import maintenance_key
from schemas.power import PowerRecord
from schemas.problems import ProblemError

_log = structlog.get_logger()


class BrokerAccounts(Protocol):
    """The broker accounts of hosts. `bus.server.process.HostAccounts` implements it."""

    async def replace_all(self, hashes: dict[str, str]) -> None:
        """Make exactly these accounts valid, host to password hash, before it returns. Raises BrokerReloadFailed."""
        ...


class AdvertisedAddresses(Struct, frozen=True, kw_only=True):
    """URLs for new hosts and relays, and sha256 pins of their certificates; None: any certificate that they trust.

    `broker`: empty where no host can join, only relays. `edge_key_pin`: of the public key, which a renewal may keep. A
    host compares the certificate once, when it joins, and pins the key by itself.
    """

    edge: str
    broker: str
    edge_pin: str | None = None
    broker_pin: str | None = None
    edge_key_pin: str | None = None


class SharedJoin(NamedTuple):
    """A host joins with a shared token. `instance_sha256`: of its runner, see JoinRequest."""

    token: HostToken
    instance_sha256: str


class HostEnrollment:
    """The enrolled hosts, in the bucket JOINED. Without `broker_accounts` and `addresses` no host can enroll."""

    def __init__(
        self,
        bus: Bus,
        keys: ApiKeyStore,
        broker_accounts: BrokerAccounts | None,
        addresses: AdvertisedAddresses | None,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._broker_accounts = broker_accounts
        self._addresses = addresses
        self._clock = clock
        self._sync_lock = Lock()
        self._syncs_requested = self._synced = 0

    def update_addresses(self, addresses: AdvertisedAddresses | None) -> None:
        """Use these addresses and pins in tokens from now on: a certificate was renewed."""
        self._addresses = addresses

    def _require_enabled(self) -> tuple[BrokerAccounts, AdvertisedAddresses]:
        if self._broker_accounts is None or self._addresses is None or not self._addresses.broker:
            message = "no other machine can enroll here: start `lamplighter up` with --public NAME"
            settings = "url and broker of [public], and nats_conf_dir and reload_command of [enrollment]"
            raise ProblemError("not_set_up", f"{message}, or set {settings}")
        return self._broker_accounts, self._addresses

    async def start(self) -> None:
        """Make the broker accounts match JOINED: an edge may have died between the two writes.

        Rows of an earlier release hold passwords, and their keys name no host. Afterwards each row holds a hash, and
        each key names its host.
        """
        rows = await self._bus.enrolled_hosts.rows()
        for host, row in rows.items():
            try:
                await self._keys.bind(row.value.key_id, host)
            except BusError as error:  # for example a full broker; the key keeps working, for the jobs of all hosts
                _log.error("host_key_bind_failed", host=host, error=str(error))
            await update_row(self._bus.enrolled_hosts, host, _with_password_hash)
        if self._broker_accounts is not None and rows:
            try:
                await self._sync_broker_accounts(self._broker_accounts)
            except (BusError, ProblemError) as error:
                _log.error("broker_accounts_sync_failed", error=str(error))

    async def add(self, host: str) -> JoinToken:
        """Enroll `host` and return its join token.

        Raises ProblemError `conflict`, `not_set_up`, `unavailable`; BusError.
        """
        self._require_enabled()
        if await self._bus.enrolled_hosts.keys(host):
            raise ProblemError("conflict", f"{host} is enrolled already: run `lamplighter hosts remove {host}` first")
        return await self.enroll(host)

    async def enroll(
        self, host: str, join: SharedJoin | None = None, replaced: TableRow[EnrolledHost] | None = None
    ) -> JoinToken:
        """Give `host` a key and a broker account of its own, and return its token.

        `replaced`: its row, whose key and account stop working. Raises as `add` does.
        """
        broker_accounts, addresses = self._require_enabled()
        issued = await self._keys.create(host, (Scope.RUNNER,), name=f"host {host}", host=host)
        password = new_password()
        enrolled = EnrolledHost(
            host=host,
            password=hash_password(password),
            key_id=issued.key.id,
            at=self._clock(),
            host_token=join and join.token.id,
            instance_sha256=join and join.instance_sha256,
            leaves_at_end=join is not None and not join.token.keeps_hosts,
        )
        try:
            if replaced is None:
                await self._bus.enrolled_hosts.create(host, enrolled)
            else:
                await self._bus.enrolled_hosts.update(host, enrolled, replaced.revision)
        except RevisionConflict as error:
            await self._keys.revoke(issued.key.id)
            raise ProblemError("conflict", f"{host} is being enrolled at this moment: try again") from error
        if replaced is not None:
            await self._revoke_key(replaced.value)
        try:
            await self._sync_broker_accounts(broker_accounts)
        except (BusError, ProblemError):
            await self._revoke_key(enrolled)
            if replaced is None:  # otherwise the next attempt of the same runner replaces the row again
                await self._bus.enrolled_hosts.delete(host)
            raise
        return JoinToken(
            host=host,
            edge=addresses.edge,
            broker=addresses.broker,
            user=runner_user_name(host),
            password=password,
            key=issued.text,
            edge_pin=addresses.edge_pin,
            broker_pin=addresses.broker_pin,
            pool=join and join.token.pool,
            host_token=enrolled.host_token,
            leaves_at_end=enrolled.leaves_at_end,
        )

    def make_shared_token(self, token: HostToken, secret: str) -> SharedJoinToken:
        """Return the text part of `token`, with the address of this edge. Raises ProblemError `not_set_up`."""
        _, addresses = self._require_enabled()
        return SharedJoinToken(
            id=token.id, secret=secret, edge=addresses.edge, prefix=token.prefix, edge_pin=addresses.edge_key_pin
        )

    async def add_relay(self, relay: str) -> tuple[ApiKey, RelayToken]:
        """Make a key for a relay and return both. The relay is nothing but that key: revoke it to remove the relay.

        Raises ProblemError `not_set_up`; BusError.
        """
        if self._addresses is None:
            message = "no address is known under which a relay reaches this edge"
            raise ProblemError("not_set_up", f"{message}: start `up` with --public NAME, or set public.url")
        issued = await self._keys.create(relay, (Scope.RELAY,), name=f"relay {relay}")
        token = RelayToken(
            relay=relay, edge=self._addresses.edge, key=issued.text, edge_pin=self._addresses.edge_key_pin
        )
        return issued.key, token

    async def remove(self, host: str, *, comes_back: bool = False) -> None:
        """Remove `host` and everything that it has as a host. Raises ProblemError `not_found`; BusError.

        These are its key, its broker account with all connections, its heartbeat, its offer, its power override, and
        its maintenance. `comes_back`: the edge powers it on again, so the last three stay.
        """
        broker_accounts, _ = self._require_enabled()
        try:
            row = await self._bus.enrolled_hosts.get(host)
        except RowUnreadable:
            row = None
        if row is not None:
            await self._revoke_key(row.value)
            # The row is deleted last, so that a repeated call updates a broker that did not answer.
            await self._bus.enrolled_hosts.put(host, replace(row.value, is_being_removed=True))
        elif not await self._bus.enrolled_hosts.keys(host):
            raise ProblemError("not_found", f"{host} is not enrolled: `lamplighter hosts list` shows the hosts")
        await self._sync_broker_accounts(broker_accounts)
        await self._bus.heartbeats.delete(host)
        if not comes_back:
            await self._bus.capabilities.delete(host)
            await self._clear_power_override(host)
            await self._bus.pauses.delete(maintenance_key(host))
        await self._bus.enrolled_hosts.delete(host)

    async def _clear_power_override(self, host: str) -> None:
        """Clear the power override of a removed host: an override has no owner any more who could clear it."""

        def clear(record: PowerRecord | None) -> PowerRecord | None:
            return record and replace(record, override=None)

        with suppress(RowUnreadable):  # such a record has no effect, and must not keep the host from being removed
            await update_row(self._bus.power_records, host, clear)

    async def _revoke_key(self, enrolled: EnrolledHost) -> None:
        with suppress(ProblemError):  # an earlier attempt may have revoked it
            await self._keys.revoke(enrolled.key_id)

    async def _password_hashes(self) -> dict[str, str]:
        rows = await self._bus.enrolled_hosts.rows()
        return {
            host: row.value.password
            for host, row in rows.items()
            if not row.value.is_being_removed and is_password_hash(row.value.password)
        }

    async def _sync_broker_accounts(self, broker_accounts: BrokerAccounts) -> None:
        """Make the broker accounts match JOINED; repeat if another edge changed a row in the meantime.

        A call that waited while another one began after it has nothing left to do: many hosts that join at the same
        time share a reload.
        """
        self._syncs_requested += 1
        own = self._syncs_requested
        async with self._sync_lock:
            if self._synced >= own:
                return
            covered, written = self._syncs_requested, None
            while written != (hashes := await self._password_hashes()):
                try:
                    await broker_accounts.replace_all(hashes)
                except BrokerReloadFailed as error:
                    raise ProblemError("unavailable", str(error)) from error
                written = hashes
            self._synced = covered


def _with_password_hash(host: EnrolledHost | None) -> EnrolledHost | None:
    """Return the row with a hash instead of a password; None if nothing has to change."""
    if host is None or is_password_hash(host.password):
        return None
    return replace(host, password=hash_password(host.password))
