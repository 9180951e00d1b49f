"""Keys: who is let in, and for how long after that has changed."""

from datetime import timedelta

import pytest

from bus.memory import MemoryBroker
from edge.services.keys import CACHE_S, Keys
from schemas.access import Scope
from schemas.errors import Refused
from tests.edge.services.world import Dice, Time


class Desk:
    """Keys over a bus of their own."""

    def __init__(self) -> None:
        self.time = Time()
        self.broker = MemoryBroker(self.time.seconds)
        self.keys = self.another()

    def another(self) -> Keys:
        return Keys(self.broker.connect().keys, self.time, Dice(), self.time.seconds)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_key_opens_and_its_neighbours_do_not(desk: Desk) -> None:
    key, text = await desk.keys.create("ann", [Scope.JOBS_READ], name="laptop", language="zh")
    assert await desk.keys.authenticate(text) == key
    wrong = [text[:-1], text + "x", text[:-1] + ("A" if text[-1] != "A" else "B"), "", "lamp_x_y", f"lamp_0_{'a' * 43}"]
    assert [await desk.keys.authenticate(other) for other in wrong] == [None] * len(wrong)
    assert key.allows(Scope.JOBS_READ)
    assert not key.allows(Scope.JOBS_WRITE)
    assert text.rpartition("_")[2] not in str(key)


async def test_a_revoked_key_is_dead_here_at_once_and_elsewhere_soon(desk: Desk) -> None:
    _, text = await desk.keys.create("ann", [Scope.ADMIN])
    other = desk.another()
    assert await other.authenticate(text)
    await desk.keys.revoke(text.split("_")[1])
    assert await desk.keys.authenticate(text) is None
    assert await other.authenticate(text)
    desk.time.pass_by(seconds=CACHE_S + 1)
    assert await other.authenticate(text) is None


async def test_an_expired_key_is_dead(desk: Desk) -> None:
    ends = desk.time() + timedelta(minutes=1)
    _, text = await desk.keys.create("ann", [Scope.ADMIN], expires_at=ends)
    assert await desk.keys.authenticate(text)
    desk.time.pass_by(minutes=1)
    assert await desk.keys.authenticate(text) is None


async def test_a_key_made_elsewhere_opens_although_its_id_was_tried_before(desk: Desk) -> None:
    other = desk.another()
    key, text = await desk.keys.create("ann", [Scope.ADMIN])
    await desk.keys.revoke(key.id)
    assert await other.authenticate(text) is None
    _, text = await other.create("ann", [Scope.ADMIN])
    assert await other.authenticate(text)


async def test_lists_are_the_owners(desk: Desk) -> None:
    first, _ = await desk.keys.create("ann", [Scope.ADMIN])
    second, _ = await desk.keys.create("bob", [Scope.ADMIN])
    assert await desk.keys.list("ann") == [first]
    assert await desk.keys.list() == [first, second]


@pytest.mark.parametrize("name", ["nope", "a.b", "*", ">", ""])
async def test_revoking_a_stranger_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(Refused) as caught:
        await desk.keys.revoke(name)
    assert caught.value.code == "not_found"


async def test_the_first_admin_key_is_made_once(desk: Desk) -> None:
    made = await desk.keys.bootstrap()
    assert made is not None
    assert made.key.scopes == (Scope.ADMIN,)
    assert await desk.keys.authenticate(made.text) == made.key
    assert await desk.keys.bootstrap() is None
    assert await desk.another().bootstrap() is None
