"""Host enrollment while the broker fails or another edge writes: a host is enrolled completely or not at all."""

from collections.abc import Awaitable, Callable, Mapping

import bcrypt
import pytest
from msgspec.structs import replace

from bus.interface import BrokerFull
from edge.hosts.enrollment import AdvertisedAddresses, HostEnrollment
from edge.owners.api_keys import ApiKeyStore
from schemas.credentials import EnrolledHost, Scope
from schemas.power import PowerOverride, PowerRecord, PowerState
from schemas.problems import ProblemError
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy
from tests.support.host_access import FakeHostAccess

WELCOME = AdvertisedAddresses(edge="https://e:8443", broker="tls://e:4222", edge_pin="a" * 64, broker_pin="b" * 64)


class JoiningEdge:
    """The enrollment service of one edge, at the common broker."""

    def __init__(self, world: FakeBusServicesRig, door: FakeHostAccess) -> None:
        self.keys = ApiKeyStore(world.bus.api_keys, world.time, FixedEntropy(), world.time.seconds)
        self.joining = HostEnrollment(world.bus, self.keys, door, WELCOME, world.time)


async def test_a_host_gets_a_user_and_a_key_of_its_own_and_loses_both(fake: FakeBusServicesRig):
    door = FakeHostAccess()
    edge = JoiningEdge(fake, door)
    asked = await edge.joining.add("gpu-1")
    assert (asked.user, asked.edge_pin, asked.broker_pin) == ("runner-gpu-1", "a" * 64, "b" * 64)
    assert await door.admits("gpu-1", asked.password)
    key = await edge.keys.authenticate(asked.key)
    assert key is not None
    assert (key.scopes, key.host) == ((Scope.RUNNER,), "gpu-1")
    await fake.send_heartbeat("gpu-1")
    await fake.announce_capabilities(host="gpu-1")
    wished = PowerRecord(state=PowerState.ONLINE, since=fake.time(), override=PowerOverride("on"))
    await fake.bus.power_records.put("gpu-1", wished)
    await edge.joining.remove("gpu-1")
    assert not await door.admits("gpu-1", asked.password)
    assert await edge.keys.authenticate(asked.key) is None
    assert not await fake.bus.heartbeats.rows()
    assert not await fake.bus.capabilities.rows()
    assert not await fake.bus.enrolled_hosts.rows()
    assert (await fake.bus.power_records.rows())["gpu-1"].value == replace(wished, override=None)
    again = await edge.joining.add("gpu-1")
    assert again.password != asked.password


async def test_its_password_is_stored_nowhere(fake: FakeBusServicesRig):
    asked = await JoiningEdge(fake, FakeHostAccess()).joining.add("gpu-1")
    (row,) = (await fake.bus.enrolled_hosts.rows()).values()
    assert asked.password not in repr(row)
    assert bcrypt.checkpw(asked.password.encode(), row.value.password.encode())


async def test_passwords_of_an_earlier_release_open_and_are_stored_hashed_from_then_on(fake: FakeBusServicesRig):
    before = EnrolledHost(host="gpu-1", password="p" + "x" * 43, key_id="k", at=fake.time())
    await fake.bus.enrolled_hosts.put("gpu-1", before)
    door = FakeHostAccess()
    await JoiningEdge(fake, door).joining.start()
    assert await door.admits("gpu-1", before.password)
    (row,) = (await fake.bus.enrolled_hosts.rows()).values()
    assert row.value == replace(before, password=door.lists[0]["gpu-1"])
    await JoiningEdge(fake, door).joining.start()
    assert door.lists[0] == door.lists[1]


async def test_a_key_of_an_earlier_release_goes_on_and_names_its_host_from_then_on(fake: FakeBusServicesRig):
    edge = JoiningEdge(fake, FakeHostAccess())
    made = await edge.keys.create("gpu-1", (Scope.RUNNER,), name="host gpu-1")
    await fake.bus.enrolled_hosts.put(
        "gpu-1", EnrolledHost(host="gpu-1", password="p", key_id=made.key.id, at=fake.time())
    )
    await fake.bus.enrolled_hosts.put("gpu-2", EnrolledHost(host="gpu-2", password="p", key_id="gone", at=fake.time()))
    assert await edge.keys.authenticate(made.text) == made.key
    await edge.joining.start()
    assert await edge.keys.authenticate(made.text) == replace(made.key, host="gpu-1")
    rotated = await edge.keys.rotate(made.key.id)
    assert rotated.key.host == "gpu-1"


async def test_a_key_that_cannot_be_written_now_keeps_no_edge_from_starting(fake: FakeBusServicesRig, monkeypatch):
    edge, door = JoiningEdge(fake, FakeHostAccess()), FakeHostAccess()
    asked = await edge.joining.add("gpu-1")

    async def full(key_id: str, host: str) -> None:
        raise BrokerFull("no room")

    monkeypatch.setattr(edge.keys, "bind", full)
    await HostEnrollment(fake.bus, edge.keys, door, WELCOME, fake.time).start()
    assert await door.admits("gpu-1", asked.password)


async def test_a_broker_that_does_not_take_it_leaves_nothing_behind(fake: FakeBusServicesRig):
    door = FakeHostAccess()
    door.failures_left = 1
    edge = JoiningEdge(fake, door)
    with pytest.raises(ProblemError, match="not taken over"):
        await edge.joining.add("gpu-1")
    assert not await fake.bus.enrolled_hosts.rows()
    assert not [key for key in await edge.keys.list() if key.name == "host gpu-1"]


async def test_putting_out_is_made_good_when_the_broker_hears_again(fake: FakeBusServicesRig):
    door = FakeHostAccess()
    edge = JoiningEdge(fake, door)
    asked = await edge.joining.add("gpu-1")
    await fake.announce_capabilities(host="gpu-1")
    door.failures_left = 1
    with pytest.raises(ProblemError, match="not taken over"):
        await edge.joining.remove("gpu-1")
    assert await edge.keys.authenticate(asked.key) is None
    with pytest.raises(ProblemError, match="enrolled already"):
        await edge.joining.add("gpu-1")
    assert await door.admits("gpu-1", asked.password)
    await JoiningEdge(fake, door).joining.start()  # an edge that starts in the meantime does the same
    assert not await door.admits("gpu-1", asked.password)
    await edge.joining.remove("gpu-1")
    assert not await door.admits("gpu-1", asked.password)
    assert not await fake.bus.enrolled_hosts.rows()
    assert not await fake.bus.capabilities.rows()


class SlowDoor(FakeHostAccess):
    """Broker accounts that call `meanwhile` before the first write takes effect."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._meanwhile: Callable[[], Awaitable[object]] | None = meanwhile

    async def replace_all(self, hashes: Mapping[str, str]) -> None:
        if (meanwhile := self._meanwhile) is not None:
            self._meanwhile = None
            await meanwhile()
        await super().replace_all(hashes)


async def test_a_list_that_another_edge_overtook_is_written_again(fake: FakeBusServicesRig):
    edge = JoiningEdge(fake, FakeHostAccess())
    asked = await edge.joining.add("gpu-1")
    door = SlowDoor(lambda: fake.bus.enrolled_hosts.delete("gpu-1"))
    other = await HostEnrollment(fake.bus, edge.keys, door, WELCOME, fake.time).add("gpu-2")
    assert [set(one) for one in door.lists] == [{"gpu-1", "gpu-2"}, {"gpu-2"}]
    assert not await door.admits("gpu-1", asked.password)
    assert await door.admits("gpu-2", other.password)


async def test_an_edge_that_died_half_way_is_made_good_by_the_next(fake: FakeBusServicesRig):
    door = FakeHostAccess()
    asked = await JoiningEdge(fake, door).joining.add("gpu-1")
    await door.replace_all({})  # as if the edge had died before the accounts were loaded
    await JoiningEdge(fake, door).joining.start()
    assert await door.admits("gpu-1", asked.password)


async def test_a_row_that_cannot_be_read_lets_nobody_in_and_stops_nobody(fake: FakeBusServicesRig):
    door = FakeHostAccess()
    edge = JoiningEdge(fake, door)
    asked = await edge.joining.add("gpu-1")
    fake.broker.corrupt("$KV.JOINED.ghost", b'{"host": "ghost"}')
    await JoiningEdge(fake, door).joining.start()
    assert await door.admits("gpu-1", asked.password)
    assert set(door.lists[-1]) == {"gpu-1"}
    with pytest.raises(ProblemError, match="enrolled already"):
        await edge.joining.add("ghost")
    await edge.joining.remove("ghost")
    assert await fake.bus.enrolled_hosts.keys() == {"gpu-1"}


async def test_what_cannot_be_is_refused(fake: FakeBusServicesRig):
    edge = JoiningEdge(fake, FakeHostAccess())
    await edge.joining.add("gpu-1")
    for ask, code in ((edge.joining.add("gpu-1"), "conflict"), (edge.joining.remove("gpu-2"), "not_found")):
        with pytest.raises(ProblemError) as refused:
            await ask
        assert refused.value.code == code
    closed = HostEnrollment(fake.bus, edge.keys, None, None, fake.time)
    with pytest.raises(ProblemError, match="--public NAME"):
        await closed.add("gpu-1")
