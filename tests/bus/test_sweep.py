"""Deleted records: their markers go an hour later, their bytes at once, and a crash in between is mended."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from bus import subjects
from bus.port import Bus
from bus.state import StateRecords
from tests.broker import Broker
from tests.bus.raw import raw
from tests.bus.samples import key, recorded

HOUR = timedelta(hours=1)
SECRET = "my voice is my passport"


def bytes_on_disk(server: Broker, text: str) -> bool:
    """Whether any block of STATE or FEED holds `text`."""
    store = Path(server.config().split('store_dir: "')[1].split('"')[0])
    return any(text.encode() in block.read_bytes() for block in store.rglob("*.blk"))


async def messages(server: Broker, stream: str) -> int:
    async with raw(server) as broker:
        return int((await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


async def test_a_marker_goes_after_its_time_and_the_living_stay(server: Broker, edge: Bus):
    assert isinstance(edge.records, StateRecords)
    revision = await edge.records.create(key("dead"), recorded("dead"))
    await edge.records.create(key("alive"), recorded("alive"))
    await edge.records.delete(key("dead"), revision)
    assert await messages(server, "KV_STATE") == 2
    now = datetime.now(UTC)
    assert await edge.records.sweep(now, HOUR) == 0
    assert await edge.records.sweep(now + HOUR + timedelta(minutes=1), HOUR) == 1
    assert await messages(server, "KV_STATE") == 1
    assert await edge.records.keys() == {key("alive")}
    await edge.records.create(key("dead"), recorded("dead"))


async def test_what_a_crash_left_before_a_marker_goes_with_it(server: Broker, edge: Bus):
    """Without that the record would rise again once its marker is gone."""
    assert isinstance(edge.records, StateRecords)
    await edge.records.create(key(), recorded())
    async with raw(server) as broker:
        await broker.publish(subjects.record(key()), b"", {"KV-Operation": "DEL"})
    assert await messages(server, "KV_STATE") == 2
    assert await edge.records.read(key()) is None
    assert await edge.records.sweep(datetime.now(UTC) + 2 * HOUR, HOUR) == 1
    assert await messages(server, "KV_STATE") == 0
    assert await edge.records.read(key()) is None


async def test_no_byte_of_a_deleted_job_stays_on_disk(server: Broker, edge: Bus):
    revision = await edge.records.create(key(), recorded(text=SECRET))
    revision = await edge.records.update(key(), recorded(text=SECRET + "!"), revision)
    assert bytes_on_disk(server, SECRET)
    await edge.records.delete(key(), revision)
    await edge.feed.erase(*key())
    assert await messages(server, "FEED") == 0
    assert not bytes_on_disk(server, SECRET)
