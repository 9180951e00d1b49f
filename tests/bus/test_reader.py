"""The page for JetStream consumers of others, run as they would run it."""

from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from bus.port import Bus
from tests.broker import PATIENCE_S, Broker, until
from tests.bus.raw import raw
from tests.bus.samples import key, piece, recorded
from tests.pages import DOCS, blocks, run


async def test_the_example_of_the_page_reads_states_as_the_reader(server: Broker, edge: Bus, tmp_path: Path):
    (example,) = blocks(DOCS / "following.md", "python")
    for name in ("one", "two"):
        await edge.records.create(key(name), recorded(name))

    async def sourced() -> bool:
        async with raw(server) as broker:
            return (await broker.api("STREAM.INFO.FEED"))["state"]["messages"] == 2

    await until(sourced)
    where = {"NATS_URL": server.url, "READER_PASSWORD": server.passwords["reader"]}
    done = await to_thread.run_sync(partial(run, "python", example, tmp_path, **where))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["feed.me.one.state submitted queued", "feed.me.two.state submitted queued"]


async def test_the_consumers_that_nats_py_makes_by_itself_work(server: Broker, edge: Bus):
    for number in range(1, 4):
        await edge.feed.publish(key(), piece(number))
    async with raw(server, "reader") as reader:
        jetstream = reader.client.jetstream()
        ordered = await jetstream.subscribe("feed.me.>", stream="FEED", ordered_consumer=True)
        got = [await ordered.next_msg(timeout=PATIENCE_S) for _ in range(3)]
        assert [message.metadata.sequence.stream for message in got] == [1, 2, 3]
        assert (await ordered.consumer_info()).stream_name == "FEED"
        pulled = await jetstream.pull_subscribe("feed.me.>", stream="FEED")
        assert len(await pulled.fetch(3, timeout=PATIENCE_S)) == 3


@pytest.mark.parametrize("stream", ["KV_STATE", "JOBS", "KV_KEYS"])
async def test_a_consumer_of_another_stream_cannot_be_made(server: Broker, edge: Bus, stream: str):
    async with raw(server, "reader") as reader:
        config = {"deliver_subject": "_INBOX_reader.x", "ack_policy": "none"}
        said = await reader.api("CONSUMER.CREATE.FEED", {"stream_name": stream, "config": config})
        assert "does not match" in said["error"]["description"]


async def test_its_password_is_not_for_strangers_as_the_page_says(server: Broker, edge: Bus):
    """What the broker cannot forbid. If this fails, the broker has learnt it: mend docs/following.md."""
    await edge.feed.publish(key(), piece(1))
    async with raw(server) as other, raw(server, "reader") as reader:
        heard = await other.client.subscribe("ctl.gpu-1")
        await other.client.flush()
        config = {"name": "x", "deliver_subject": "ctl.gpu-1", "ack_policy": "none", "filter_subject": "feed.me.>"}
        said = await reader.api("CONSUMER.CREATE.FEED.x.feed.me.>", {"stream_name": "FEED", "config": config})
        assert "error" not in said
        assert (await heard.next_msg(timeout=PATIENCE_S)).subject == "feed.me.one.log"
        await reader.client.publish("$JS.API.STREAM.INFO.FEED", b"", reply="$KV.STATE.me.one")

        async def written() -> bool:
            return (await other.api("STREAM.INFO.KV_STATE"))["state"]["messages"] == 1

        await until(written)
