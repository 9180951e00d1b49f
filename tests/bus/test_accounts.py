"""A broker of the release before, without accounts: it works on and is warned of; `up`'s own is moved at its start."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bus.connection import open_edge, open_runner
from bus.port import Unreachable
from bus.server import Server, serving
from schemas.words import Priority
from tests.broker import PATIENCE_S, Broker, OneAccount
from tests.bus.samples import key, piece, recorded
from tests.bus.test_rights import ONE


@asynccontextmanager
async def of_before(folder: Path) -> AsyncIterator[Broker]:
    """With a job in it that a reader of FEED was told of."""
    async with serving(OneAccount(folder)) as server:
        async with open_edge(server.settings("edge")) as edge:
            await edge.queue.ensure(["echo"])
            await edge.records.create(key(), recorded())
            await edge.queue.publish(ONE)
            await edge.feed.publish(key(), piece(1))
        yield server


async def test_a_broker_without_accounts_works_on_and_is_warned_of(tmp_path: Path):
    async with of_before(tmp_path) as server:
        with capture_logs() as logs:
            async with open_edge(server.settings("edge")) as edge, open_runner(server.settings("runner")) as runner:
                assert await runner.records.read(key()) is not None
                assert await edge.queue.waiting() == {ONE}
        assert [line["log_level"] for line in logs if "no accounts" in line["event"]] == ["warning"]


async def test_what_it_held_is_there_when_it_has_accounts(tmp_path: Path):
    async with of_before(tmp_path):
        pass
    with capture_logs() as logs:
        async with (
            serving(Broker(tmp_path)) as server,
            open_edge(server.settings("edge")) as edge,
            open_runner(server.settings("runner")) as runner,
        ):
            entry = await runner.records.read(key())
            assert entry is not None
            assert await edge.feed.notes(key()) == [piece(1)]
            delivery = await runner.queue.take("echo", Priority.NORMAL, PATIENCE_S)
            assert delivery is not None
            await delivery.done()
    assert not [line for line in logs if "no accounts" in line["event"]]


async def test_streams_of_two_releases_are_not_mixed(tmp_path: Path):
    async with of_before(tmp_path):
        pass
    async with serving(Broker(tmp_path)):
        pass
    async with of_before(tmp_path):
        pass
    with pytest.raises(Unreachable, match=r"two sets of streams"):
        await Server(tmp_path).start()
