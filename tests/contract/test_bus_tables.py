"""The contract of Table and Control (bus/interface.py), on the fake and on a real broker."""

from datetime import timedelta

import pytest

from bus.interface import BrokerUnreachable, RevisionConflict, RowUnreadable
from schemas.asset import AssetReference
from schemas.credentials import ApiKey, Scope
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.installation import DeletedOwner, Pause, endpoint_pause_key, maintenance_key
from schemas.job import JobKey
from tests.support.bus_pairs import BusPair
from tests.support.bus_samples import NOW, make_key
from tests.support.stream_collector import collect_stream
from tests.support.wait import wait_for


def tombstone(digest: str, minutes: int = 0) -> AssetTombstone:
    return AssetTombstone(digest, NOW + timedelta(minutes=minutes))


async def test_a_row_is_read_as_written(world: BusPair):
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


async def test_a_runner_reads_the_pauses_that_the_edge_writes(world: BusPair):
    """Their stream is that of TOMBSTONES, of which neither may see the other's rows."""
    endpoint, host = endpoint_pause_key("echo"), maintenance_key("gpu-1")
    await world.edge.tombstones.put("ab", tombstone("ab"))
    await world.edge.pauses.create(endpoint, Pause(NOW, "ops"))
    await world.edge.pauses.put(host, Pause(NOW))
    assert await world.runner.pauses.keys() == {endpoint, host}
    rows = await world.runner.pauses.rows()
    assert {key: row.value for key, row in rows.items()} == {endpoint: Pause(NOW, "ops"), host: Pause(NOW)}
    assert await world.runner.tombstones.keys() == {"ab"}
    await world.edge.pauses.delete(endpoint)
    assert await world.runner.pauses.get(endpoint) is None
    assert await world.runner.pauses.keys() == {host}


async def test_a_runner_reads_the_deleted_owners_that_the_edge_writes(world: BusPair):
    await world.edge.tombstones.put("ab", tombstone("ab"))
    await world.edge.deleted_owners.put("ann", DeletedOwner(NOW))
    rows = await world.runner.deleted_owners.rows()
    assert {owner: row.value for owner, row in rows.items()} == {"ann": DeletedOwner(NOW)}
    assert await world.runner.tombstones.keys() == {"ab"}
    await world.edge.deleted_owners.delete("ann")
    assert await world.runner.deleted_owners.rows() == {}


async def test_only_one_creates_a_row(world: BusPair):
    await world.edge.tombstones.create("ab", tombstone("ab"))
    with pytest.raises(RevisionConflict):
        await world.edge.tombstones.create("ab", tombstone("ab", 1))


async def test_an_update_behind_an_old_revision_conflicts(world: BusPair):
    table = world.edge.tombstones
    first = await table.create("ab", tombstone("ab"))
    second = await table.update("ab", tombstone("ab", 1), first)
    with pytest.raises(RevisionConflict):
        await table.update("ab", tombstone("ab", 2), first)
    assert await table.update("ab", tombstone("ab", 2), second) > second


async def test_a_deleted_row_is_gone_and_may_be_made_again(world: BusPair):
    table = world.edge.tombstones
    await table.put("ab", tombstone("ab"))
    await table.delete("ab")
    await table.delete("never")
    assert await table.get("ab") is None
    assert await table.rows() == {}
    await table.create("ab", tombstone("ab", 1))
    assert list(await table.rows()) == ["ab"]


async def test_rows_start_with_a_prefix_of_whole_tokens(world: BusPair):
    table = world.edge.asset_references
    reference = AssetReference("a.mp4", 1, "video/mp4", NOW, NOW)
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
async def test_keys_are_found_by_their_tokens(world: BusPair, pattern: str, named: set[str]):
    reference = AssetReference("a.mp4", 1, "video/mp4", NOW, NOW)
    for name in ("me.ab", "me.cd", "you.ab"):
        await world.edge.asset_references.put(name, reference)
    assert await world.edge.asset_references.keys(pattern) == named


async def test_a_runner_learns_of_every_deleted_asset_in_one_go(world: BusPair):
    for name in ("ab", "cd"):
        await world.edge.tombstones.put(name, tombstone(name))
    await world.edge.tombstones.delete("cd")
    assert await world.runner.tombstones.keys() == {"ab"}


async def test_rows_are_given_however_many_there_are(world: BusPair):
    names = [f"{number:064x}" for number in range(200)]
    for name in names:
        await world.edge.tombstones.put(name, tombstone(name))
    rows = await world.runner.tombstones.rows()
    assert {name: row.value.sha256 for name, row in rows.items()} == dict(zip(names, names, strict=True))


async def test_rows_are_those_of_now_however_often_they_are_read(world: BusPair):
    """An edge keeps the rows of this bucket, and reads again only those that were written since."""
    table, runner = world.edge.heartbeats, world.runner.heartbeats
    expected: dict[str, HostHeartbeat] = {}

    async def put(host: str, minutes: int = 0) -> None:
        expected[host] = HostHeartbeat(host=host, incarnation="a", at=NOW + timedelta(minutes=minutes), since=NOW)
        await runner.put(host, expected[host])

    async def is_read() -> bool:
        return {host: row.value for host, row in (await table.rows()).items()} == expected

    assert await is_read()
    await put("gpu-1")
    await put("gpu-2")
    assert await is_read()
    await put("gpu-1", 1)
    await put("gpu-1", 2)  # what the broker had between the two is gone
    assert await is_read()
    await runner.delete("gpu-2")  # leaves a marker
    del expected["gpu-2"]
    assert await is_read()
    await put("gpu-2", 3)
    await put("gpu-3")
    assert await is_read()
    await table.delete("gpu-1")  # leaves nothing
    del expected["gpu-1"]
    assert await is_read()
    await put("gpu-1", 4)
    await world.corrupt("$KV.HOSTS.gpu-4", b"rubbish")
    assert await is_read()
    for number in range(70):
        await put(f"more-{number}")
    assert await is_read()
    assert await is_read()


async def test_the_runner_writes_and_withdraws_its_presence(world: BusPair):
    here = HostHeartbeat(host="gpu-1", incarnation="a", at=NOW, since=NOW)
    await world.runner.heartbeats.put("gpu-1", here)
    assert {host: row.value for host, row in (await world.edge.heartbeats.rows()).items()} == {"gpu-1": here}
    other = await world.runner.heartbeats.get("gpu-1")
    assert other is not None
    await world.runner.heartbeats.delete("gpu-1")
    assert await world.edge.heartbeats.get("gpu-1") is None
    assert await world.runner.heartbeats.get("gpu-1") is None
    assert await world.edge.heartbeats.rows() == {}
    await world.runner.heartbeats.put("gpu-1", here)
    assert await world.edge.heartbeats.get("gpu-1") is not None


async def test_every_table_holds_its_type(world: BusPair):
    offer = HostCapabilities(host="gpu-1", incarnation="a", at=NOW)
    await world.runner.capabilities.put("gpu-1", offer)
    api_key = ApiKey(id="k", owner="me", scopes=(Scope.ADMIN,), secret_sha256="0", created_at=NOW)
    await world.edge.api_keys.create("k", api_key)
    offered, kept = await world.edge.capabilities.get("gpu-1"), await world.edge.api_keys.get("k")
    assert offered is not None
    assert offered.value == offer
    assert kept is not None
    assert kept.value == api_key


async def test_rows_outlive_a_restart(world: BusPair):
    here = HostHeartbeat(host="gpu-1", incarnation="a", at=NOW, since=NOW)
    await world.runner.heartbeats.put("gpu-1", here)
    await world.edge.tombstones.put("ab", tombstone("ab"))
    await world.restart()

    async def back() -> bool:
        try:
            return (
                await world.edge.tombstones.get("ab") is not None
                and await world.edge.heartbeats.get("gpu-1") is not None
            )
        except BrokerUnreachable:
            return False

    await wait_for(back)
    assert set(await world.edge.heartbeats.rows()) == {"gpu-1"}


async def test_a_nudge_reaches_its_host_only(world: BusPair):
    async with (
        collect_stream(world.runner.host_nudges.subscribe("gpu-1")) as mine,
        collect_stream(world.runner.host_nudges.subscribe("gpu-2")) as others,
    ):
        await _nudge_until(world, "gpu-2", others.items)
        assert not mine.items
        await _nudge_until(world, "gpu-1", mine.items)
    assert set(mine.items) == {make_key()}


async def test_nudges_go_on_over_a_restart(world: BusPair):
    async with collect_stream(world.runner.host_nudges.subscribe("gpu-1")) as nudges:
        await _nudge_until(world, "gpu-1", nudges.items)
        await world.restart()
        nudges.items.clear()
        await _nudge_until(world, "gpu-1", nudges.items)
    assert set(nudges.items) == {make_key()}


async def _nudge_until(world: BusPair, host: str, heard: list[JobKey]) -> None:
    """Nudges may be lost, so they are said until one is heard."""

    async def nudged() -> bool:
        try:
            await world.edge.host_nudges.nudge(host, make_key())
        except BrokerUnreachable:
            return False
        return bool(heard)

    await wait_for(nudged)


@pytest.mark.parametrize("rubbish", [b"\x00\xff", b"{half", b"[]", b'{"host": 1}', b"[" * 100_000])
async def test_a_row_that_cannot_be_read_is_set_aside_and_can_be_removed(world: BusPair, rubbish: bytes):
    here = HostHeartbeat(host="gpu-1", incarnation="a", at=NOW, since=NOW)
    await world.edge.heartbeats.put("gpu-1", here)
    await world.corrupt("$KV.HOSTS.ghost", rubbish)
    for bus in (world.edge, world.runner):
        rows = await bus.heartbeats.rows()
        assert set(rows) == {"gpu-1"}
        assert rows.unreadable.keys() == {"ghost"}
        assert all(rows.unreadable.values())
        assert await bus.heartbeats.keys() == {"gpu-1", "ghost"}
        with pytest.raises(RowUnreadable, match=r"\$KV\.HOSTS\.ghost"):
            await bus.heartbeats.get("ghost")
    await world.edge.heartbeats.delete("ghost")
    assert not (await world.edge.heartbeats.rows()).unreadable
    assert await world.edge.heartbeats.get("ghost") is None
    assert await world.edge.heartbeats.keys() == {"gpu-1"}
