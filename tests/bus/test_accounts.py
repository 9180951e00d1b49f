"""A broker of the release before, without accounts: it works on and is warned of; `up`'s own is moved at its start."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bus.interface import BrokerUnreachable
from bus.open import open_edge, open_runner
from bus.server.process import NatsServer, run_server
from schemas.job import Priority
from tests.bus.test_rights import ONE
from tests.support.bus_samples import make_key, make_log_piece, make_record
from tests.support.nats_broker import BrokerProcess, SingleAccountBroker
from tests.support.wait import WAIT_TIMEOUT_S


@asynccontextmanager
async def of_before(folder: Path) -> AsyncIterator[BrokerProcess]:
    """With a job in it that a reader of FEED was told of."""
    async with run_server(SingleAccountBroker(folder)) as server:
        async with open_edge(server.settings("edge")) as edge:
            await edge.job_queue.ensure_consumers(["echo"])
            await edge.job_store.create(make_key(), make_record())
            await edge.job_queue.publish(ONE)
            await edge.feed.publish(make_key(), make_log_piece(1))
        yield server


async def test_a_broker_without_accounts_works_on_and_is_warned_of(tmp_path: Path):
    async with of_before(tmp_path) as server:
        with capture_logs() as logs:
            async with open_edge(server.settings("edge")) as edge, open_runner(server.settings("runner")) as runner:
                assert await runner.job_store.read(make_key()) is not None
                assert await edge.job_queue.list_pending() == {ONE}
        assert [line["log_level"] for line in logs if line["event"] == "broker_without_accounts_found"] == ["warning"]


async def test_what_it_held_is_there_when_it_has_accounts(tmp_path: Path):
    async with of_before(tmp_path):
        pass
    with capture_logs() as logs:
        async with (
            run_server(BrokerProcess(tmp_path)) as server,
            open_edge(server.settings("edge")) as edge,
            open_runner(server.settings("runner")) as runner,
        ):
            entry = await runner.job_store.read(make_key())
            assert entry is not None
            assert await edge.feed.messages(make_key()) == [make_log_piece(1)]
            delivery = await runner.job_queue.fetch("echo", Priority.NORMAL, WAIT_TIMEOUT_S)
            assert delivery is not None
            await delivery.ack()
    assert not [line for line in logs if line["event"] == "broker_without_accounts_found"]


async def test_streams_of_two_releases_are_not_mixed(tmp_path: Path):
    async with of_before(tmp_path):
        pass
    async with run_server(BrokerProcess(tmp_path)):
        pass
    async with of_before(tmp_path):
        pass
    with pytest.raises(BrokerUnreachable, match=r"two sets of streams"):
        await NatsServer(tmp_path).start()
