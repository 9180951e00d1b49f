"""Deleted records: their markers go an hour later, their bytes at once, and a crash in between is mended."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from bus.interface import Bus
from bus.nats import wire
from bus.nats.key_value import NatsJobStore
from tests.support.bus_samples import make_key, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw

HOUR = timedelta(hours=1)
SECRET = "my voice is my passport"


def bytes_on_disk(server: BrokerProcess, text: str) -> bool:
    """Whether any block of STATE or FEED holds `text`."""
    store = Path(server.config().split('store_dir: "')[1].split('"')[0])
    return any(text.encode() in block.read_bytes() for block in store.rglob("*.blk"))


async def messages(server: BrokerProcess, stream: str) -> int:
    async with connect_raw(server) as broker:
        return int((await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


async def test_a_marker_goes_after_its_time_and_the_living_stay(server: BrokerProcess, edge: Bus):
    assert isinstance(edge.job_store, NatsJobStore)
    revision = await edge.job_store.create(make_key("dead"), make_record("dead"))
    await edge.job_store.create(make_key("alive"), make_record("alive"))
    await edge.job_store.delete(make_key("dead"), revision)
    assert await messages(server, "KV_STATE") == 2
    now = datetime.now(UTC)
    assert await edge.job_store.sweep_delete_markers(now, HOUR) == 0
    assert await edge.job_store.sweep_delete_markers(now + HOUR + timedelta(minutes=1), HOUR) == 1
    assert await messages(server, "KV_STATE") == 1
    assert await edge.job_store.keys() == {make_key("alive")}
    await edge.job_store.create(make_key("dead"), make_record("dead"))


async def test_what_a_crash_left_before_a_marker_goes_with_it(server: BrokerProcess, edge: Bus):
    """Without that the record would rise again once its marker is gone."""
    assert isinstance(edge.job_store, NatsJobStore)
    await edge.job_store.create(make_key(), make_record())
    async with connect_raw(server) as broker:
        await broker.publish(wire.record_subject(make_key()), b"", {"KV-Operation": "DEL"})
    assert await messages(server, "KV_STATE") == 2
    assert await edge.job_store.read(make_key()) is None
    assert await edge.job_store.sweep_delete_markers(datetime.now(UTC) + 2 * HOUR, HOUR) == 1
    assert await messages(server, "KV_STATE") == 0
    assert await edge.job_store.read(make_key()) is None


async def test_no_byte_of_a_deleted_job_stays_on_disk(server: BrokerProcess, edge: Bus):
    revision = await edge.job_store.create(make_key(), make_record(text=SECRET))
    revision = await edge.job_store.update(make_key(), make_record(text=SECRET + "!"), revision)
    assert bytes_on_disk(server, SECRET)
    await edge.job_store.delete(make_key(), revision)
    await edge.feed.delete(*make_key())
    assert await messages(server, "FEED") == 0
    assert not bytes_on_disk(server, SECRET)
