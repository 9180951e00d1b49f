"""What the edge erased is not on the broker's disk any more: its files are searched for the bytes."""

from pathlib import Path

from msgspec.structs import replace

from bus.interface import Bus, WebhookDelivery
from bus.nats.key_value import RECORD_HISTORY_LIMIT, NatsJobStore
from schemas.asset import AssetReference
from schemas.events import JobRecord
from tests.support.bus_samples import NOW, make_key, make_record
from tests.support.byte_search import find_marks
from tests.support.nats_broker import BrokerProcess

MARK = "c0ffee-marker"


def marked(job_id: str = "one") -> JobRecord:
    given = make_record(job_id)
    return replace(given, job=replace(given.job, input={"text": MARK}))


def reference(name: str) -> AssetReference:
    return AssetReference(name, 1, "video/mp4", NOW, NOW)


async def test_a_row_leaves_nothing_of_what_it_said_before(server: BrokerProcess, edge: Bus, tmp_path: Path):
    await edge.asset_references.put("bob.x", reference("stays"))  # a block of which nothing is left would go as a whole
    first = await edge.asset_references.create("ann.x", reference(MARK))
    second = await edge.asset_references.update("ann.x", reference(MARK), first)
    await edge.asset_references.put("ann.x", reference(MARK))
    assert second > first
    assert sum(find_marks(tmp_path, [MARK]).values()) == 1
    await edge.asset_references.put("ann.x", reference("other"))
    assert find_marks(tmp_path, [MARK]) == {}
    assert len(await edge.asset_references.rows()) == 2


async def test_a_delivery_that_was_sent_is_gone_from_the_disk(server: BrokerProcess, edge: Bus, tmp_path: Path):
    await edge.webhook_outbox.enqueue(WebhookDelivery(3, make_record("zero")))
    await edge.webhook_outbox.enqueue(WebhookDelivery(7, marked()))
    assert find_marks(tmp_path, [MARK])
    held = [await edge.webhook_outbox.fetch(), await edge.webhook_outbox.fetch()]
    for one in held[1:]:
        assert one is not None
        await one.ack()
    assert find_marks(tmp_path, [MARK]) == {}
    assert await edge.webhook_outbox.remove("me") == 1
    assert await edge.webhook_outbox.fetch() is None


async def test_a_long_history_is_trimmed_and_goes_with_its_job(server: BrokerProcess, edge: Bus, tmp_path: Path):
    await edge.job_store.create(make_key("stays"), make_record("stays"))
    revision = await edge.job_store.create(make_key(), marked())
    for _ in range(RECORD_HISTORY_LIMIT + 5):
        revision = await edge.job_store.update(make_key(), make_record(), revision)
    assert find_marks(tmp_path, [MARK])
    assert len(await edge.job_store.history(make_key())) == RECORD_HISTORY_LIMIT
    records = edge.job_store
    assert isinstance(records, NatsJobStore)
    assert await records.trim_history() == 1
    assert await records.trim_history() == 0
    await edge.feed.delete(*make_key())
    assert find_marks(tmp_path, [MARK]) == {}
    assert len(await edge.job_store.history(make_key())) == RECORD_HISTORY_LIMIT


async def test_a_deleted_job_leaves_no_byte_of_its_record(server: BrokerProcess, edge: Bus, tmp_path: Path):
    await edge.job_store.create(make_key("stays"), make_record("stays"))
    revision = await edge.job_store.create(make_key(), marked())
    for _ in range(RECORD_HISTORY_LIMIT - 1):  # a delete marker must not push the oldest out
        revision = await edge.job_store.update(make_key(), marked(), revision)
    await edge.job_store.delete(make_key(), revision)
    assert await edge.feed.delete("me") > 0  # of what was not sourced before it was deleted there is nothing to erase
    assert find_marks(tmp_path, [MARK]) == {}
