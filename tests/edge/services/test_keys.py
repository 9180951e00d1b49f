"""API keys: which credentials are accepted, and for how long after a change."""

from datetime import timedelta

import anyio
import pytest

from bus.interface import BrokerUnreachable
from edge.owners.api_keys import CACHE_TTL_S, ROTATION_GRACE, ApiKeyStore
from schemas.credentials import Scope
from schemas.problems import ProblemError
from tests.support.edge_services import FixedEntropy, ManualClock
from tests.support.fake_bus.broker import FakeBroker
from tests.support.wait import wait_for


class KeyDesk:
    """An API key store with its own fake bus."""

    def __init__(self) -> None:
        self.time = ManualClock()
        self.broker = FakeBroker(self.time.seconds)
        self.keys = self.another()

    def another(self) -> ApiKeyStore:
        return ApiKeyStore(self.broker.connect().api_keys, self.time, FixedEntropy(), self.time.seconds)


@pytest.fixture
def desk() -> KeyDesk:
    return KeyDesk()


async def test_a_key_opens_and_its_neighbours_do_not(desk: KeyDesk) -> None:
    key, text = await desk.keys.create("ann", [Scope.JOBS_READ], name="laptop", language="zh")
    assert await desk.keys.authenticate(text) == key
    wrong = [text[:-1], text + "x", text[:-1] + ("A" if text[-1] != "A" else "B"), "", "lamp_x_y", f"lamp_0_{'a' * 43}"]
    assert [await desk.keys.authenticate(other) for other in wrong] == [None] * len(wrong)
    assert key.allows(Scope.JOBS_READ)
    assert not key.allows(Scope.JOBS_WRITE)
    assert text.rpartition("_")[2] not in str(key)


async def test_a_revoked_key_is_dead_here_at_once_and_elsewhere_soon(desk: KeyDesk) -> None:
    _, text = await desk.keys.create("ann", [Scope.ADMIN])
    other = desk.another()
    assert await other.authenticate(text)
    await desk.keys.revoke(text.split("_")[1])
    assert await desk.keys.authenticate(text) is None
    assert await other.authenticate(text)
    desk.time.advance(seconds=CACHE_TTL_S + 1)
    assert await other.authenticate(text) is None


async def test_an_expired_key_is_dead(desk: KeyDesk) -> None:
    ends = desk.time() + timedelta(minutes=1)
    _, text = await desk.keys.create("ann", [Scope.ADMIN], expires_at=ends)
    assert await desk.keys.authenticate(text)
    desk.time.advance(minutes=1)
    assert await desk.keys.authenticate(text) is None


async def test_a_key_made_elsewhere_opens_although_its_id_was_tried_before(desk: KeyDesk) -> None:
    other = desk.another()
    key, text = await desk.keys.create("ann", [Scope.ADMIN])
    await desk.keys.revoke(key.id)
    assert await other.authenticate(text) is None
    _, text = await other.create("ann", [Scope.ADMIN])
    assert await other.authenticate(text)


async def test_lists_are_the_owners(desk: KeyDesk) -> None:
    first, _ = await desk.keys.create("ann", [Scope.ADMIN])
    second, _ = await desk.keys.create("bob", [Scope.ADMIN])
    assert await desk.keys.list("ann") == [first]
    assert await desk.keys.list() == [first, second]


@pytest.mark.parametrize("name", ["nope", "a.b", "*", ">", ""])
async def test_revoking_a_stranger_is_refused(desk: KeyDesk, name: str) -> None:
    kept = (await desk.keys.create("ann", [Scope.ADMIN])).key
    with pytest.raises(ProblemError) as caught:
        await desk.keys.revoke(name)
    assert caught.value.code == "not_found"
    assert await desk.keys.list() == [kept]


async def test_the_first_admin_key_is_made_once(desk: KeyDesk) -> None:
    made = await desk.keys.bootstrap()
    assert made is not None
    assert made.key.scopes == (Scope.ADMIN,)
    assert await desk.keys.authenticate(made.text) == made.key
    assert await desk.keys.bootstrap() is None
    assert await desk.another().bootstrap() is None


async def test_a_rotated_key_opens_with_both_secrets_for_a_while(desk: KeyDesk) -> None:
    key, old = await desk.keys.create("ann", [Scope.ADMIN], name="laptop")
    other = desk.another()
    assert await other.authenticate(old)
    rotated, new = await desk.keys.rotate(key.id)
    assert (rotated.id, rotated.name, rotated.scopes) == (key.id, key.name, key.scopes)
    assert await desk.keys.authenticate(old)
    assert await desk.keys.authenticate(new)
    desk.time.advance(seconds=CACHE_TTL_S + 1)
    assert await other.authenticate(new)
    desk.time.now += ROTATION_GRACE
    assert await desk.keys.authenticate(old) is None
    assert await desk.keys.authenticate(new)


async def test_without_grace_the_old_secret_is_dead_at_once(desk: KeyDesk) -> None:
    key, old = await desk.keys.create("ann", [Scope.ADMIN])
    _, new = await desk.keys.rotate(key.id, timedelta(0))
    assert await desk.keys.authenticate(old) is None
    assert await desk.keys.authenticate(new)
    _, newest = await desk.keys.rotate(key.id)
    assert await desk.keys.authenticate(old) is None
    assert await desk.keys.authenticate(new)
    assert await desk.keys.authenticate(newest)


async def test_only_what_is_there_is_rotated(desk: KeyDesk) -> None:
    for name in ("nope", "a.b", "*"):
        with pytest.raises(ProblemError) as caught:
            await desk.keys.rotate(name)
        assert caught.value.code == "not_found"


async def test_the_last_use_is_written_now_and_then_and_never_by_a_request(desk: KeyDesk) -> None:
    key, text = await desk.keys.create("ann", [Scope.ADMIN])

    async def used() -> float | None:
        at = (await desk.keys.list())[0].used_at
        return None if at is None else (at - key.created_at).total_seconds()

    for _ in range(3):
        await desk.keys.authenticate(text)
    assert await used() is None
    await desk.keys.write_last_uses()
    first = await used()
    assert first is not None
    assert first < 1
    desk.time.advance(minutes=4)
    await desk.keys.authenticate(text)
    await desk.keys.write_last_uses()
    assert await used() == first, "minutes behind is near enough"
    desk.time.advance(minutes=2)
    await desk.keys.authenticate(text)
    await desk.keys.write_last_uses()
    assert (await used() or 0) > 300
    rotated, _ = await desk.keys.rotate(key.id)
    assert rotated.used_at is not None
    await desk.keys.authenticate(text)
    await desk.keys.revoke(key.id)
    await desk.keys.write_last_uses()
    assert await desk.keys.list() == []


async def test_a_key_whose_row_cannot_be_read_opens_nothing_and_stops_nobody(desk: KeyDesk) -> None:
    kept = await desk.keys.create("ann", [Scope.JOBS_READ])
    _, spoiled = await desk.keys.create("ann", [Scope.ADMIN])
    key_id = spoiled.split("_")[1]
    desk.broker.corrupt(f"$KV.KEYS.{key_id}", b"{half")
    assert await desk.another().authenticate(spoiled) is None
    assert await desk.keys.list("ann") == [kept.key]
    await desk.keys.revoke(key_id)
    assert await desk.broker.connect().api_keys.keys() == {kept.key.id}


async def test_no_first_key_is_made_beside_keys_that_cannot_be_read(desk: KeyDesk) -> None:
    desk.broker.corrupt("$KV.KEYS.admin", b"\x00")
    assert await desk.keys.bootstrap() is None


async def test_uses_are_written_in_the_background_and_again_after_a_failure(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.owners.api_keys._LAST_USE_WRITE_INTERVAL_S", 0.01)
    write, failures = desk.keys.write_last_uses, [BrokerUnreachable("the test said so")]

    async def fail_once() -> None:
        if failures:
            raise failures.pop()
        await write()

    monkeypatch.setattr(desk.keys, "write_last_uses", fail_once)
    _, text = await desk.keys.create("ann", [Scope.JOBS_READ])
    await desk.keys.authenticate(text)

    async def is_written() -> bool:
        return (await desk.keys.list("ann"))[0].used_at is not None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.keys.run)
        await wait_for(is_written)
        tasks.cancel_scope.cancel()
    assert not failures
