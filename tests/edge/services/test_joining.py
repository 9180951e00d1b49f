"""Joining over a broker's list that is slow, deaf, or written by two edges: in or out, never half."""

import pytest

from edge.services import joining
from edge.services.joining import Joining, Welcome
from edge.services.keys import Keys
from schemas.access import Scope
from schemas.errors import Refused
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
    assert key.scopes == (Scope.RUNNER,)
    await fake.appear("gpu-1")
    await fake.offer(host="gpu-1")
    await edge.joining.remove("gpu-1")
    assert not await door.admits("gpu-1", asked.password)
    assert await edge.keys.authenticate(asked.key) is None
    assert not await fake.bus.hosts.rows()
    assert not await fake.bus.offers.rows()
    again = await edge.joining.add("gpu-1")
    assert again.password != asked.password


async def test_a_list_that_an_edge_missed_is_written_again(fake: FakeWorld):
    door = FakeDoor()
    door.deaf, door.hung_up = 2, 1
    asked = await Edge(fake, door).joining.add("gpu-1")
    assert await door.admits("gpu-1", asked.password)
    assert len(door.lists) == 3


async def test_a_broker_that_never_takes_it_leaves_nothing_behind(fake: FakeWorld, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(joining, "TAKEN_S", 0.2)
    door = FakeDoor()
    door.deaf = 1_000_000
    edge = Edge(fake, door)
    with pytest.raises(Refused, match="not taken over"):
        await edge.joining.add("gpu-1")
    assert not await fake.bus.joined.rows()
    assert not [key for key in await edge.keys.list() if key.name == "host gpu-1"]


async def test_putting_out_is_tried_again_until_the_broker_has_heard(fake: FakeWorld, monkeypatch: pytest.MonkeyPatch):
    door = FakeDoor()
    edge = Edge(fake, door)
    asked = await edge.joining.add("gpu-1")
    await fake.offer(host="gpu-1")
    with monkeypatch.context() as patience:
        patience.setattr(joining, "TAKEN_S", 0.2)
        door.deaf = 1_000_000
        with pytest.raises(Refused, match="not taken over"):
            await edge.joining.remove("gpu-1")
    assert await edge.keys.authenticate(asked.key) is None
    with pytest.raises(Refused, match="joined already"):
        await edge.joining.add("gpu-1")
    assert await door.admits("gpu-1", asked.password)
    door.deaf = 0
    await Edge(fake, door).joining.start()  # an edge that comes up meanwhile does it as well
    assert not await door.admits("gpu-1", asked.password)
    await edge.joining.remove("gpu-1")
    assert not await door.admits("gpu-1", asked.password)
    assert not await fake.bus.joined.rows()
    assert not await fake.bus.offers.rows()


async def test_an_edge_that_died_half_way_is_made_good_by_the_next(fake: FakeWorld):
    door = FakeDoor()
    asked = await Edge(fake, door).joining.add("gpu-1")
    await door.write({})  # as if it had died before its list was read
    await Edge(fake, door).joining.start()
    assert await door.admits("gpu-1", asked.password)


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
