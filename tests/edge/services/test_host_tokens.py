"""Join tokens for many hosts: what is counted, who is refused, and what is left of a host that ended."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import Bus
from edge.hosts.enrollment import AdvertisedAddresses, HostEnrollment
from edge.hosts.host_tokens import HostTokens, HostTokenTerms, SilentHostRemover
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditFilter, AuditLog
from schemas.credentials import JoinRequest, SharedJoinToken
from schemas.installation import BY_EDGE
from schemas.power import PowerOverride, PowerRecord, PowerState
from schemas.problems import ProblemError
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy
from tests.support.host_access import FakeHostAccess
from tests.support.wait import wait_for

ADDRESSES = AdvertisedAddresses(
    edge="https://e:8443", broker="tls://e:4222", edge_pin="a" * 64, broker_pin="b" * 64, edge_key_pin="c" * 64
)
TERMS = HostTokenTerms(uses=2, ttl=timedelta(days=7), prefix="slurm")
SILENT_FOR = timedelta(minutes=10)


class TokenEdge:
    """The services of one edge that let hosts join with shared tokens. `slurm-9` is declared there."""

    def __init__(self, world: FakeBusServicesRig, accounts: FakeHostAccess | None = None) -> None:
        self.world = world
        self.accounts = accounts or FakeHostAccess()
        self.keys = ApiKeyStore(world.bus.api_keys, world.time, FixedEntropy(), world.time.seconds)
        self.enrollment = HostEnrollment(world.bus, self.keys, self.accounts, ADDRESSES, world.time)
        self.tokens = HostTokens(world.bus, self.enrollment, {"slurm-9"}, world.time, FixedEntropy())
        self.audit = AuditLog(world.bus.audit_log, world.time, FixedEntropy(), world.folder)
        self.remover = SilentHostRemover(world.bus, self.tokens, world.index, self.audit, world.time, SILENT_FOR)

    async def make(self, terms: HostTokenTerms = TERMS) -> SharedJoinToken:
        _, shared = await self.tokens.create(terms, "admin")
        return shared

    async def used(self) -> list[tuple[int, int]]:
        """Return of each token how many joined, and how many of them are enrolled."""
        return [(token.used, hosts) for token, hosts in await self.tokens.list()]


@pytest.fixture
def edge(fake: FakeBusServicesRig) -> TokenEdge:
    return TokenEdge(fake)


def replace_terms(**changes: Any) -> HostTokenTerms:
    return TERMS._replace(**changes)


def request(shared: SharedJoinToken, instance: str, host: str | None = None) -> JoinRequest:
    return JoinRequest(token=shared.id, secret=shared.secret, instance=instance.ljust(16, "_"), host=host)


async def refusal(edge: TokenEdge, asked: JoinRequest) -> str:
    with pytest.raises(ProblemError) as refused:
        await edge.tokens.join(asked)
    return refused.value.code


async def test_each_host_gets_credentials_of_its_own(edge: TokenEdge):
    shared = await edge.make(replace_terms(pool="video"))
    assert (shared.edge, shared.edge_pin, shared.prefix) == ("https://e:8443", "c" * 64, "slurm")
    first, second = [await edge.tokens.join(request(shared, name)) for name in ("one", "two")]
    assert first is not None
    assert second is not None
    assert first.host != second.host
    assert first.host.startswith("slurm-")
    assert (first.pool, first.host_token, first.leaves_at_end) == ("video", shared.id, True)
    for joined in (first, second):
        key = await edge.keys.authenticate(joined.key)
        assert key is not None
        assert key.host == joined.host
        assert await edge.accounts.admits(joined.host, joined.password)
    assert shared.secret not in repr(await edge.world.bus.host_tokens.rows())


async def test_used_up_expired_and_revoked_are_told_apart(edge: TokenEdge):
    shared = await edge.make()
    for name in ("one", "two"):
        assert await edge.tokens.join(request(shared, name)) is not None
    assert await refusal(edge, request(shared, "three")) == "join_token_used_up"
    other = await edge.make()
    edge.world.time.advance(seconds=7 * 86_400)
    assert await refusal(edge, request(other, "three")) == "join_token_expired"
    third = await edge.make()
    await edge.tokens.revoke(third.id)
    assert await refusal(edge, request(third, "three")) == "join_token_revoked"
    assert await edge.used() == [(2, 2), (0, 0), (0, 0)]


async def test_a_wrong_secret_joins_nobody_and_uses_nothing(edge: TokenEdge):
    shared = await edge.make()
    assert await edge.tokens.join(request(replace(shared, secret="x" * 43), "one")) is None
    assert await edge.tokens.join(request(replace(shared, id="unknown"), "one")) is None
    assert await edge.used() == [(0, 0)]


async def test_of_two_that_want_the_last_use_at_once_one_gets_it(edge: TokenEdge):
    """Two edges: each has its own lock, so that only the broker decides."""
    shared = await edge.make(replace_terms(uses=1))
    neighbour = TokenEdge(edge.world)
    codes: list[str] = []

    async def join(at: TokenEdge, name: str) -> None:
        try:
            codes.append("joined" if await at.tokens.join(request(shared, name)) else "unknown")
        except ProblemError as error:
            codes.append(error.code)

    async with anyio.create_task_group() as tasks:
        for at, name in ((edge, "one"), (neighbour, "two"), (edge, "three"), (neighbour, "four")):
            tasks.start_soon(join, at, name)
    assert sorted(codes) == ["join_token_used_up"] * 3 + ["joined"]
    assert await edge.used() == [(1, 1)]


class BusyAccounts(FakeHostAccess):
    """Broker accounts whose first reload takes until `rows` hosts have their rows."""

    def __init__(self, bus: Bus, rows: int) -> None:
        super().__init__()
        self._bus, self._rows = bus, rows

    async def replace_all(self, hashes: Mapping[str, str]) -> None:
        async def all_have_rows() -> bool:
            return len(await self._bus.enrolled_hosts.keys()) == self._rows

        await wait_for(all_have_rows)
        await super().replace_all(hashes)


async def test_a_hundred_that_join_at_once_share_the_reloads_of_the_broker(fake: FakeBusServicesRig):
    edge = TokenEdge(fake, BusyAccounts(fake.bus, 100))
    shared = await edge.make(replace_terms(uses=100))
    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(edge.tokens.join, request(shared, f"number {number}"))
    assert await edge.used() == [(100, 100)]
    assert len(edge.accounts.lists[-1]) == 100
    assert len(edge.accounts.lists) <= 3


async def test_a_runner_that_asks_again_is_the_same_host_and_uses_nothing(edge: TokenEdge):
    """The answer was lost, or the runner started again in the same data folder."""
    shared = await edge.make(replace_terms(uses=1))
    first, again = [await edge.tokens.join(request(shared, "one")) for _ in range(2)]
    assert first is not None
    assert again is not None
    assert first.host == again.host
    assert await edge.keys.authenticate(first.key) is None
    assert not await edge.accounts.admits(first.host, first.password)
    assert await edge.accounts.admits(again.host, again.password)
    assert await edge.used() == [(1, 1)]


async def test_a_broker_that_does_not_take_it_costs_no_use(edge: TokenEdge):
    shared = await edge.make()
    edge.accounts.failures_left = 1
    assert await refusal(edge, request(shared, "one")) == "unavailable"
    assert await edge.used() == [(0, 0)]
    assert await edge.tokens.join(request(shared, "one")) is not None


async def test_a_runner_may_name_itself_within_the_prefix(edge: TokenEdge):
    shared = await edge.make()
    assert await refusal(edge, request(shared, "one", "gpu-1")) == "input_invalid"
    joined = await edge.tokens.join(request(shared, "one", "slurm-1"))
    assert joined is not None
    assert joined.host == "slurm-1"


async def test_a_name_is_taken_while_its_host_is_online_and_free_when_it_is_gone(edge: TokenEdge):
    """A pilot that was killed could not say so, and the next one has its name."""
    shared = await edge.make()
    killed = await edge.tokens.join(request(shared, "one", "slurm-1"))
    await edge.world.send_heartbeat("slurm-1")
    assert await refusal(edge, request(shared, "two", "slurm-1")) == "conflict"
    await edge.world.bus.heartbeats.delete("slurm-1")
    following = await edge.tokens.join(request(shared, "two", "slurm-1"))
    assert killed is not None
    assert following is not None
    assert await edge.keys.authenticate(killed.key) is None
    assert await edge.keys.authenticate(following.key) is not None
    assert await edge.used() == [(2, 1)]


async def test_a_host_that_was_added_by_hand_is_never_replaced(edge: TokenEdge):
    await edge.enrollment.add("slurm-1")
    shared = await edge.make()
    assert await refusal(edge, request(shared, "one", "slurm-1")) == "conflict"
    with pytest.raises(ProblemError, match="stays enrolled"):
        await edge.tokens.leave("slurm-1")
    assert await edge.used() == [(0, 0)]


async def test_a_host_that_ends_leaves_nothing_behind(edge: TokenEdge):
    shared = await edge.make()
    joined = await edge.tokens.join(request(shared, "one"))
    assert joined is not None
    await edge.world.send_heartbeat(joined.host)
    await edge.world.announce_capabilities(host=joined.host)
    assert await edge.tokens.leave(joined.host)
    assert not await edge.tokens.leave(joined.host)
    bus = edge.world.bus
    assert not await bus.enrolled_hosts.keys() | await bus.heartbeats.keys() | await bus.capabilities.keys()
    assert await edge.keys.authenticate(joined.key) is None
    assert not await edge.accounts.admits(joined.host, joined.password)
    assert await edge.used() == [(1, 0)]


async def test_a_declared_host_keeps_what_the_edge_wakes_it_by(edge: TokenEdge):
    shared = await edge.make()
    await edge.tokens.join(request(shared, "one", "slurm-9"))
    await edge.world.announce_capabilities(host="slurm-9")
    record = PowerRecord(state=PowerState.ONLINE, since=edge.world.time(), override=PowerOverride("on"))
    await edge.world.bus.power_records.put("slurm-9", record)
    await edge.tokens.leave("slurm-9")
    assert await edge.world.bus.capabilities.keys() == {"slurm-9"}
    assert (await edge.world.bus.power_records.rows())["slurm-9"].value.override is not None
    assert not await edge.world.bus.enrolled_hosts.keys()


async def test_a_host_that_is_silent_for_long_is_removed(edge: TokenEdge):
    shared = await edge.make(replace_terms(uses=9))
    kept = await edge.make(replace_terms(keeps_hosts=True))
    silent = await edge.tokens.join(request(shared, "one", "slurm-1"))
    await edge.tokens.join(request(shared, "two", "slurm-2"))
    await edge.tokens.join(request(kept, "three", "slurm-3"))
    await edge.enrollment.add("gpu-1")
    for _ in range(3):
        await edge.world.send_heartbeat("slurm-2")
        await edge.remover.sweep()
        edge.world.time.advance(seconds=SILENT_FOR.total_seconds() - 1)
    await edge.world.send_heartbeat("slurm-2")
    await edge.remover.sweep()
    assert await edge.world.bus.enrolled_hosts.keys() == {"slurm-2", "slurm-3", "gpu-1"}
    assert silent is not None
    assert await edge.keys.authenticate(silent.key) is None
    ((entry,), _) = await edge.audit.read(AuditFilter(action="host_left"), 10)
    assert (entry.event.subject, entry.event.by, entry.event.details) == ("slurm-1", BY_EDGE, {"reason": "silent"})


async def test_silence_during_an_outage_of_the_broker_does_not_count(edge: TokenEdge):
    shared = await edge.make()
    await edge.tokens.join(request(shared, "one", "slurm-1"))
    await edge.remover.sweep()
    edge.world.time.advance(seconds=SILENT_FOR.total_seconds())
    edge.world.bus.health.cut()
    edge.world.bus.health.heal()
    await edge.remover.sweep()
    assert await edge.world.bus.enrolled_hosts.keys() == {"slurm-1"}


async def test_a_silent_host_that_holds_a_job_is_not_removed(edge: TokenEdge):
    shared = await edge.make()
    await edge.tokens.join(request(shared, "one", "slurm-1"))
    await edge.world.start(await edge.world.submit(), host="slurm-1")
    await edge.remover.sweep()
    edge.world.time.advance(seconds=SILENT_FOR.total_seconds())
    await edge.remover.sweep()
    assert await edge.world.bus.enrolled_hosts.keys() == {"slurm-1"}


async def test_a_token_is_listed_for_a_month_after_its_end(edge: TokenEdge):
    await edge.make()
    revoked = await edge.make(replace_terms(ttl=timedelta(days=365)))
    await edge.tokens.revoke(revoked.id)
    edge.world.time.advance(seconds=29 * 86_400)
    await edge.tokens.delete_ended_tokens()
    assert len(await edge.tokens.list()) == 2
    edge.world.time.advance(seconds=2 * 86_400)
    await edge.tokens.delete_ended_tokens()
    assert len(await edge.tokens.list()) == 1
    with pytest.raises(ProblemError, match="no join token"):
        await edge.tokens.revoke(revoked.id)
