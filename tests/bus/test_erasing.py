"""What the edge erased is not on the broker's disk any more: its files are searched for the bytes."""

from pathlib import Path

from msgspec.structs import replace

from bus.outgoing import Letter
from bus.port import Bus
from bus.state import HISTORY, StateRecords
from schemas.asset import Reference
from schemas.events import Recorded
from tests.broker import Broker
from tests.bus.samples import NOW, key, recorded
from tests.searching import found

MARK = "c0ffee-marker"


def marked(job_id: str = "one") -> Recorded:
    given = recorded(job_id)
    return replace(given, job=replace(given.job, input={"text": MARK}))


def reference(name: str) -> Reference:
    return Reference(name, 1, "video/mp4", NOW, NOW)


async def test_a_row_leaves_nothing_of_what_it_said_before(server: Broker, edge: Bus, tmp_path: Path):
    await edge.assets.put("bob.x", reference("stays"))  # a block of which nothing is left would go as a whole
    first = await edge.assets.create("ann.x", reference(MARK))
    second = await edge.assets.update("ann.x", reference(MARK), first)
    await edge.assets.put("ann.x", reference(MARK))
    assert second > first
    assert sum(found(tmp_path, [MARK]).values()) == 1
    await edge.assets.put("ann.x", reference("other"))
    assert found(tmp_path, [MARK]) == {}
    assert len(await edge.assets.rows()) == 2


async def test_a_letter_that_was_delivered_is_gone_from_the_disk(server: Broker, edge: Bus, tmp_path: Path):
    await edge.outbox.post(Letter(3, recorded("zero")))
    await edge.outbox.post(Letter(7, marked()))
    assert found(tmp_path, [MARK])
    held = [await edge.outbox.take(), await edge.outbox.take()]
    for one in held[1:]:
        assert one is not None
        await one.done()
    assert found(tmp_path, [MARK]) == {}
    assert await edge.outbox.withdraw("me") == 1
    assert await edge.outbox.take() is None


async def test_a_long_history_is_trimmed_and_goes_with_its_job(server: Broker, edge: Bus, tmp_path: Path):
    await edge.records.create(key("stays"), recorded("stays"))
    revision = await edge.records.create(key(), marked())
    for _ in range(HISTORY + 5):
        revision = await edge.records.update(key(), recorded(), revision)
    assert found(tmp_path, [MARK])
    assert len(await edge.records.history(key())) == HISTORY
    records = edge.records
    assert isinstance(records, StateRecords)
    assert await records.trim() == 1
    assert await records.trim() == 0
    await edge.feed.erase(*key())
    assert found(tmp_path, [MARK]) == {}
    assert len(await edge.records.history(key())) == HISTORY


async def test_a_deleted_job_leaves_no_byte_of_its_record(server: Broker, edge: Bus, tmp_path: Path):
    await edge.records.create(key("stays"), recorded("stays"))
    revision = await edge.records.create(key(), marked())
    for _ in range(HISTORY - 1):  # a delete marker must not push the oldest out
        revision = await edge.records.update(key(), marked(), revision)
    await edge.records.delete(key(), revision)
    assert await edge.feed.erase("me") > 0  # of what was not sourced before it was deleted there is nothing to erase
    assert found(tmp_path, [MARK]) == {}
