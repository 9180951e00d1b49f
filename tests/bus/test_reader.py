"""The page for JetStream consumers of others, run as they would run it."""

from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread
from nats.js.errors import BadRequestError, NotFoundError

from bus.interface import Bus
from bus.open import open_edge
from tests.support.bus_samples import make_key, make_log_piece, make_record
from tests.support.doc_pages import DOCS, read_blocks, run_block
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw
from tests.support.stream_collector import collect_stream
from tests.support.wait import WAIT_TIMEOUT_S, wait_for


async def test_the_example_of_the_page_reads_states_as_the_reader(server: BrokerProcess, edge: Bus, tmp_path: Path):
    (example,) = read_blocks(DOCS / "following.md", "python")
    for name in ("one", "two"):
        await edge.job_store.create(make_key(name), make_record(name))

    async def sourced() -> bool:
        async with connect_raw(server) as broker:
            return (await broker.api("STREAM.INFO.FEED"))["state"]["messages"] == 2

    await wait_for(sourced)
    where = {"NATS_URL": server.url, "READER_PASSWORD": server.passwords["reader"]}
    done = await to_thread.run_sync(partial(run_block, "python", example, tmp_path, **where))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["feed.me.one.state submitted queued", "feed.me.two.state submitted queued"]


async def test_the_consumers_that_nats_py_makes_by_itself_work(server: BrokerProcess, edge: Bus):
    for number in range(1, 4):
        await edge.feed.publish(make_key(), make_log_piece(number))
    async with connect_raw(server, "reader") as reader:
        jetstream = reader.client.jetstream()
        pulled = await jetstream.pull_subscribe("feed.me.>", stream="FEED")
        got = await pulled.fetch(3, timeout=WAIT_TIMEOUT_S)
        assert [message.metadata.sequence.stream for message in got] == [1, 2, 3]
        assert (await pulled.consumer_info()).stream_name == "FEED"
        for message in got:
            await message.ack_sync()
        durable = await jetstream.pull_subscribe("feed.me.>", durable="kept", stream="FEED")
        assert len(await durable.fetch(3, timeout=WAIT_TIMEOUT_S)) == 3
        assert await jetstream.delete_consumer("FEED", "kept")
        with pytest.raises(NotFoundError):
            await jetstream.consumer_info("FEED", "kept")


@pytest.mark.parametrize("stream", ["KV_STATE", "JOBS", "KV_KEYS"])
async def test_a_consumer_of_another_stream_cannot_be_made(server: BrokerProcess, edge: Bus, stream: str):
    async with connect_raw(server, "reader") as reader:
        config = {"ack_policy": "explicit"}
        said = await reader.api("CONSUMER.CREATE.FEED", {"stream_name": stream, "config": config})
        assert "does not match" in said["error"]["description"]


async def test_a_consumer_that_pushes_is_refused_with_what_to_do(server: BrokerProcess, edge: Bus):
    async with connect_raw(server, "reader") as reader:
        jetstream = reader.client.jetstream()
        with pytest.raises(BadRequestError, match="pull consumer: leave deliver_subject out"):
            await jetstream.subscribe("feed.me.>", stream="FEED", ordered_consumer=True)


@pytest.mark.parametrize("body", [b"", b"{half", b"[]", b'{"config": 1}', b"[" * 100_000])
async def test_what_is_not_a_configuration_is_refused_and_the_next_is_served(
    server: BrokerProcess, edge: Bus, body: bytes
):
    async with connect_raw(server, "reader") as reader:
        said = await reader.client.request("$JS.API.CONSUMER.CREATE.FEED.mine", body)
        assert b"not a consumer's configuration" in said.data
        made = {"stream_name": "FEED", "config": {"name": "mine", "ack_policy": "explicit"}}
        assert "error" not in await reader.api("CONSUMER.CREATE.FEED.mine", made)


async def test_the_consumers_of_edges_are_not_a_readers(server: BrokerProcess, edge: Bus):
    async with (
        collect_stream(edge.feed.follow("me")) as followed,
        connect_raw(server) as other,
        connect_raw(server, "reader") as reader,
    ):

        async def opened() -> list[str]:
            return (await other.api("CONSUMER.NAMES.FEED"))["consumers"]

        async def there() -> bool:
            return bool(await opened())

        await wait_for(there)
        (name,) = await opened()
        config = {"name": name, "ack_policy": "none", "deliver_subject": "_INBOX_reader.x"}
        for verb, body in (
            (f"CONSUMER.DELETE.FEED.{name}", {}),
            (f"CONSUMER.CREATE.FEED.{name}.feed.>", {"stream_name": "FEED", "config": config}),
            ("CONSUMER.CREATE.FEED", {"stream_name": "FEED", "config": config}),
        ):
            assert "are the edges'" in (await reader.api(verb, body))["error"]["description"]
        await edge.feed.publish(make_key(), make_log_piece(1))

        async def told() -> bool:
            return len(followed.items) == 1

        await wait_for(told)
        assert await opened() == [name]


async def test_of_two_edges_one_answers_a_reader(server: BrokerProcess, edge: Bus):
    async with (
        open_edge(server.settings("edge")),
        connect_raw(server) as other,
        connect_raw(server, "reader") as reader,
    ):
        body = {"stream_name": "FEED", "config": {"ack_policy": "explicit", "inactive_threshold": 60 * 10**9}}
        for made in range(1, 6):
            assert "error" not in await reader.api("CONSUMER.CREATE.FEED", body)
            assert len((await other.api("CONSUMER.NAMES.FEED"))["consumers"]) == made
