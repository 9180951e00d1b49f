"""Joining over a broker's list that is deaf, or written by two edges: in or out, never half."""

from collections.abc import Awaitable, Callable, Mapping

import bcrypt
import pytest
from msgspec.structs import replace

from bus.port import StoreFull
from edge.services.joining import Joining, Welcome
from edge.services.keys import Keys
from schemas.access import Scope
from schemas.errors import Refused
from schemas.joining import Joined
from schemas.power import Hold, PowerRecord, PowerState
from tests.contract.doors import FakeDoor
from tests.edge.services.world import Dice, FakeWorld

WELCOME = Welcome(edge="https://e:8443", broker="tls://e:4222", edge_pin="a" * 64, broker_pin="b" * 64)


class Edge:
    """One edge's joining, at the world's broker."""

    def __init__(self, world: FakeWorld, door: FakeDoor) -> None:
        self.keys = Keys(world.bus.keys, world.time, Dice(), world.time.seconds)
        self.joining = Joining(world.bus, self.keys, door, WELCOME, world.time)


async def test_a_host_gets_a_user_and_a_key_of_its_own_and_loses_both(fake: FakeWorld):
    door = FakeDoor()
    edge = Edge(fake, door)
    asked = await edge.joining.add("gpu-1")
    assert (asked.user, asked.edge_pin, asked.broker_pin) == ("runner-gpu-1", "a" * 64, "b" * 64)
    assert await door.admits("gpu-1", asked.password)
    key = await edge.keys.authenticate(asked.key)
    assert key is not None
    assert (key.scopes, key.host) == ((Scope.RUNNER,), "gpu-1")
    await fake.appear("gpu-1")
    await fake.offer(host="gpu-1")
    wished = PowerRecord(state=PowerState.ONLINE, since=fake.time(), hold=Hold("on"))
    await fake.bus.power.put("gpu-1", wished)
    await edge.joining.remove("gpu-1")
    assert not await door.admits("gpu-1", asked.password)
    assert await edge.keys.authenticate(asked.key) is None
    assert not await fake.bus.hosts.rows()
    assert not await fake.bus.offers.rows()
    assert not await fake.bus.joined.rows()
    assert (await fake.bus.power.rows())["gpu-1"].value == replace(wished, hold=None)
    again = await edge.joining.add("gpu-1")
    assert again.password != asked.password


async def test_its_password_is_stored_nowhere(fake: FakeWorld):
    asked = await Edge(fake, FakeDoor()).joining.add("gpu-1")
    (row,) = (await fake.bus.joined.rows()).values()
    assert asked.password not in repr(row)
    assert bcrypt.checkpw(asked.password.encode(), row.value.password.encode())


async def test_passwords_of_an_earlier_release_open_and_are_stored_hashed_from_then_on(fake: FakeWorld):
    before = Joined(host="gpu-1", password="p" + "x" * 43, key_id="k", at=fake.time())
    await fake.bus.joined.put("gpu-1", before)
    door = FakeDoor()
    await Edge(fake, door).joining.start()
    assert await door.admits("gpu-1", before.password)
    (row,) = (await fake.bus.joined.rows()).values()
    assert row.value == replace(before, password=door.lists[0]["gpu-1"])
    await Edge(fake, door).joining.start()
    assert door.lists[0] == door.lists[1]


async def test_a_key_of_an_earlier_release_goes_on_and_names_its_host_from_then_on(fake: FakeWorld):
    edge = Edge(fake, FakeDoor())
    made = await edge.keys.create("gpu-1", (Scope.RUNNER,), name="host gpu-1")
    await fake.bus.joined.put("gpu-1", Joined(host="gpu-1", password="p", key_id=made.key.id, at=fake.time()))
    await fake.bus.joined.put("gpu-2", Joined(host="gpu-2", password="p", key_id="gone", at=fake.time()))
    assert await edge.keys.authenticate(made.text) == made.key
    await edge.joining.start()
    assert await edge.keys.authenticate(made.text) == replace(made.key, host="gpu-1")
    rotated = await edge.keys.rotate(made.key.id)
    assert rotated.key.host == "gpu-1"


async def test_a_key_that_cannot_be_written_now_keeps_no_edge_from_starting(fake: FakeWorld, monkeypatch):
    edge, door = Edge(fake, FakeDoor()), FakeDoor()
    asked = await edge.joining.add("gpu-1")

    async def full(key_id: str, host: str) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(edge.keys, "bind", full)
    await Joining(fake.bus, edge.keys, door, WELCOME, fake.time).start()
    assert await door.admits("gpu-1", asked.password)


async def test_a_broker_that_does_not_take_it_leaves_nothing_behind(fake: FakeWorld):
    door = FakeDoor()
    door.deaf = 1
    edge = Edge(fake, door)
    with pytest.raises(Refused, match="not taken over"):
        await edge.joining.add("gpu-1")
    assert not await fake.bus.joined.rows()
    assert not [key for key in await edge.keys.list() if key.name == "host gpu-1"]


async def test_putting_out_is_made_good_when_the_broker_hears_again(fake: FakeWorld):
    door = FakeDoor()
    edge = Edge(fake, door)
    asked = await edge.joining.add("gpu-1")
    await fake.offer(host="gpu-1")
    door.deaf = 1
    with pytest.raises(Refused, match="not taken over"):
        await edge.joining.remove("gpu-1")
    assert await edge.keys.authenticate(asked.key) is None
    with pytest.raises(Refused, match="joined already"):
        await edge.joining.add("gpu-1")
    assert await door.admits("gpu-1", asked.password)
    await Edge(fake, door).joining.start()  # an edge that comes up meanwhile does it as well
    assert not await door.admits("gpu-1", asked.password)
    await edge.joining.remove("gpu-1")
    assert not await door.admits("gpu-1", asked.password)
    assert not await fake.bus.joined.rows()
    assert not await fake.bus.offers.rows()


class SlowDoor(FakeDoor):
    """Before its first list takes effect, `meanwhile` happens."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._meanwhile: Callable[[], Awaitable[object]] | None = meanwhile

    async def write(self, hashes: Mapping[str, str]) -> None:
        if (meanwhile := self._meanwhile) is not None:
            self._meanwhile = None
            await meanwhile()
        await super().write(hashes)


async def test_a_list_that_another_edge_overtook_is_written_again(fake: FakeWorld):
    edge = Edge(fake, FakeDoor())
    asked = await edge.joining.add("gpu-1")
    door = SlowDoor(lambda: fake.bus.joined.delete("gpu-1"))
    other = await Joining(fake.bus, edge.keys, door, WELCOME, fake.time).add("gpu-2")
    assert [set(one) for one in door.lists] == [{"gpu-1", "gpu-2"}, {"gpu-2"}]
    assert not await door.admits("gpu-1", asked.password)
    assert await door.admits("gpu-2", other.password)


async def test_an_edge_that_died_half_way_is_made_good_by_the_next(fake: FakeWorld):
    door = FakeDoor()
    asked = await Edge(fake, door).joining.add("gpu-1")
    await door.write({})  # as if it had died before its list was read
    await Edge(fake, door).joining.start()
    assert await door.admits("gpu-1", asked.password)


async def test_a_row_that_cannot_be_read_lets_nobody_in_and_stops_nobody(fake: FakeWorld):
    door = FakeDoor()
    edge = Edge(fake, door)
    asked = await edge.joining.add("gpu-1")
    fake.broker.vandalise("$KV.JOINED.ghost", b'{"host": "ghost"}')
    await Edge(fake, door).joining.start()
    assert await door.admits("gpu-1", asked.password)
    assert set(door.lists[-1]) == {"gpu-1"}
    with pytest.raises(Refused, match="joined already"):
        await edge.joining.add("ghost")
    await edge.joining.remove("ghost")
    assert await fake.bus.joined.keys() == {"gpu-1"}


async def test_what_cannot_be_is_refused(fake: FakeWorld):
    edge = Edge(fake, FakeDoor())
    await edge.joining.add("gpu-1")
    for ask, code in ((edge.joining.add("gpu-1"), "conflict"), (edge.joining.remove("gpu-2"), "not_found")):
        with pytest.raises(Refused) as refused:
            await ask
        assert refused.value.code == code
    closed = Joining(fake.bus, edge.keys, None, None, fake.time)
    with pytest.raises(Refused, match="--public NAME"):
        await closed.add("gpu-1")
