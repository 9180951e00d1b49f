"""The contract of Table and Control (bus/port.py), on the fake and on a real broker."""

from datetime import timedelta

import pytest

from bus.port import Conflict, Unreachable, Unreadable
from schemas.access import ApiKey, Scope
from schemas.asset import Reference
from schemas.host import Offer, Presence, Tombstone
from schemas.job import JobKey
from tests.broker import until
from tests.bus.gathering import gathering
from tests.bus.samples import NOW, key
from tests.contract.bus_worlds import World


def tombstone(digest: str, minutes: int = 0) -> Tombstone:
    return Tombstone(digest, NOW + timedelta(minutes=minutes))


async def test_a_row_is_read_as_written(world: World):
    table = world.edge.tombstones
    assert await table.get("ab") is None
    revision = await table.put("ab", tombstone("ab"))
    row = await table.get("ab")
    assert row is not None
    assert (row.revision, row.value) == (revision, tombstone("ab"))
    await table.put("ab", tombstone("ab", 5))
    again = await table.get("ab")
    assert again is not None
    assert again.value == tombstone("ab", 5)


async def test_only_one_creates_a_row(world: World):
    await world.edge.tombstones.create("ab", tombstone("ab"))
    with pytest.raises(Conflict):
        await world.edge.tombstones.create("ab", tombstone("ab", 1))


async def test_an_update_behind_an_old_revision_conflicts(world: World):
    table = world.edge.tombstones
    first = await table.create("ab", tombstone("ab"))
    second = await table.update("ab", tombstone("ab", 1), first)
    with pytest.raises(Conflict):
        await table.update("ab", tombstone("ab", 2), first)
    assert await table.update("ab", tombstone("ab", 2), second) > second


async def test_a_deleted_row_is_gone_and_may_be_made_again(world: World):
    table = world.edge.tombstones
    await table.put("ab", tombstone("ab"))
    await table.delete("ab")
    await table.delete("never")
    assert await table.get("ab") is None
    assert await table.rows() == {}
    await table.create("ab", tombstone("ab", 1))
    assert list(await table.rows()) == ["ab"]


async def test_rows_start_with_a_prefix_of_whole_tokens(world: World):
    table = world.edge.assets
    reference = Reference("a.mp4", 1, "video/mp4", NOW, NOW)
    for name in ("me.ab", "me.cd", "me2.ab", "you.ab"):
        await table.put(name, reference)
    assert list(await table.rows("me.")) == ["me.ab", "me.cd"]
    assert await table.rows("nobody.") == {}
    assert set(await table.rows()) == {"me.ab", "me.cd", "me2.ab", "you.ab"}


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (">", {"me.ab", "me.cd", "you.ab"}),
        ("*.ab", {"me.ab", "you.ab"}),
        ("me.*", {"me.ab", "me.cd"}),
        ("me.>", {"me.ab", "me.cd"}),
        ("me.ab", {"me.ab"}),
        ("me.ab.>", set()),
        ("*", set()),
    ],
)
async def test_keys_are_found_by_their_tokens(world: World, pattern: str, named: set[str]):
    reference = Reference("a.mp4", 1, "video/mp4", NOW, NOW)
    for name in ("me.ab", "me.cd", "you.ab"):
        await world.edge.assets.put(name, reference)
    assert await world.edge.assets.keys(pattern) == named


async def test_a_runner_learns_of_every_deleted_asset_in_one_go(world: World):
    for name in ("ab", "cd"):
        await world.edge.tombstones.put(name, tombstone(name))
    await world.edge.tombstones.delete("cd")
    assert await world.runner.tombstones.keys() == {"ab"}


async def test_rows_are_given_however_many_there_are(world: World):
    names = [f"{number:064x}" for number in range(200)]
    for name in names:
        await world.edge.tombstones.put(name, tombstone(name))
    rows = await world.runner.tombstones.rows()
    assert {name: row.value.sha256 for name, row in rows.items()} == dict(zip(names, names, strict=True))


async def test_the_runner_writes_and_withdraws_its_presence(world: World):
    here = Presence(host="gpu-1", incarnation="a", at=NOW, since=NOW)
    await world.runner.hosts.put("gpu-1", here)
    assert {host: row.value for host, row in (await world.edge.hosts.rows()).items()} == {"gpu-1": here}
    other = await world.runner.hosts.get("gpu-1")
    assert other is not None
    await world.runner.hosts.delete("gpu-1")
    assert await world.edge.hosts.get("gpu-1") is None
    assert await world.runner.hosts.get("gpu-1") is None
    assert await world.edge.hosts.rows() == {}
    await world.runner.hosts.put("gpu-1", here)
    assert await world.edge.hosts.get("gpu-1") is not None


async def test_every_table_holds_its_type(world: World):
    offer = Offer(host="gpu-1", incarnation="a", at=NOW)
    await world.runner.offers.put("gpu-1", offer)
    api_key = ApiKey(id="k", owner="me", scopes=(Scope.ADMIN,), secret_sha256="0", created_at=NOW)
    await world.edge.keys.create("k", api_key)
    offered, kept = await world.edge.offers.get("gpu-1"), await world.edge.keys.get("k")
    assert offered is not None
    assert offered.value == offer
    assert kept is not None
    assert kept.value == api_key


async def test_rows_outlive_a_restart(world: World):
    here = Presence(host="gpu-1", incarnation="a", at=NOW, since=NOW)
    await world.runner.hosts.put("gpu-1", here)
    await world.edge.tombstones.put("ab", tombstone("ab"))
    await world.restart()

    async def back() -> bool:
        try:
            return await world.edge.tombstones.get("ab") is not None and await world.edge.hosts.get("gpu-1") is not None
        except Unreachable:
            return False

    await until(back)
    assert set(await world.edge.hosts.rows()) == {"gpu-1"}


async def test_a_nudge_reaches_its_host_only(world: World):
    async with (
        gathering(world.runner.control.nudges("gpu-1")) as mine,
        gathering(world.runner.control.nudges("gpu-2")) as others,
    ):
        await _nudge_until(world, "gpu-2", others.items)
        assert not mine.items
        await _nudge_until(world, "gpu-1", mine.items)
    assert set(mine.items) == {key()}


async def test_nudges_go_on_over_a_restart(world: World):
    async with gathering(world.runner.control.nudges("gpu-1")) as nudges:
        await _nudge_until(world, "gpu-1", nudges.items)
        await world.restart()
        nudges.items.clear()
        await _nudge_until(world, "gpu-1", nudges.items)
    assert set(nudges.items) == {key()}


async def _nudge_until(world: World, host: str, heard: list[JobKey]) -> None:
    """Nudges may be lost, so they are said until one is heard."""

    async def nudged() -> bool:
        try:
            await world.edge.control.nudge(host, key())
        except Unreachable:
            return False
        return bool(heard)

    await until(nudged)


@pytest.mark.parametrize("rubbish", [b"\x00\xff", b"{half", b"[]", b'{"host": 1}', b"[" * 100_000])
async def test_a_row_that_cannot_be_read_is_set_aside_and_can_be_removed(world: World, rubbish: bytes):
    here = Presence(host="gpu-1", incarnation="a", at=NOW, since=NOW)
    await world.edge.hosts.put("gpu-1", here)
    await world.vandalise("$KV.HOSTS.ghost", rubbish)
    for bus in (world.edge, world.runner):
        assert set(await bus.hosts.rows()) == {"gpu-1"}
        assert await bus.hosts.keys() == {"gpu-1", "ghost"}
        with pytest.raises(Unreadable, match=r"\$KV\.HOSTS\.ghost"):
            await bus.hosts.get("ghost")
    await world.edge.hosts.delete("ghost")
    assert await world.edge.hosts.get("ghost") is None
    assert await world.edge.hosts.keys() == {"gpu-1"}
