"""A nats-server of our own: ready when `start` returns, the same after a crash, and clear about why it cannot start."""

from pathlib import Path

import anyio
import httpx2
import pytest

from bus.interface import BrokerUnreachable, Bus
from bus.open import open_edge
from bus.server.config import LOGIN_TIMEOUT_S
from bus.server.process import NatsServer, run_server
from tests.support.bus_samples import make_key, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.wait import WAIT_TIMEOUT_S


async def test_it_keeps_ports_passwords_and_data_over_a_crash(tmp_path: Path):
    async with run_server(BrokerProcess(tmp_path)) as server:
        before = (server.url, server.monitor_url, dict(server.passwords), server.pid)
        async with open_edge(server.settings("edge")) as bus:
            await bus.job_store.create(make_key(), make_record())
        await server.kill()
        assert server.pid is None
        await server.start()
        assert (server.url, server.monitor_url, dict(server.passwords)) == before[:3]
        assert server.pid != before[3]
        async with open_edge(server.settings("edge")) as bus:
            assert await bus.job_store.read(make_key()) is not None


async def test_it_gives_a_client_of_a_busy_machine_time_to_log_in(tmp_path: Path):
    async with run_server(BrokerProcess(tmp_path)) as server, httpx2.AsyncClient(timeout=60) as client:
        varz = (await client.get(f"{server.monitor_url}/varz")).json()
    assert varz["auth_timeout"] == LOGIN_TIMEOUT_S >= 10


async def test_two_do_not_meet(tmp_path: Path):
    async with run_server(BrokerProcess(tmp_path / "one")) as one, run_server(BrokerProcess(tmp_path / "two")) as two:
        assert one.url != two.url
        async with open_edge(one.settings("edge")) as first, open_edge(two.settings("edge")) as second:
            await first.job_store.create(make_key(), make_record())
            assert await second.job_store.read(make_key()) is None


async def test_whoever_waits_for_its_end_is_notified(tmp_path: Path):
    async with run_server(NatsServer(tmp_path)) as server:
        ended = anyio.Event()

        async def wait() -> None:
            await server.wait_until_ended()
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            await server.kill()
            with anyio.fail_after(WAIT_TIMEOUT_S):
                await ended.wait()


async def test_a_config_it_cannot_run_with_is_said_with_its_log(tmp_path: Path):
    (tmp_path / "jetstream").write_text("in the way")
    with pytest.raises(BrokerUnreachable, match="did not start"):
        await NatsServer(tmp_path).start()


async def test_its_config_is_readable_by_its_owner_only(tmp_path: Path):
    async with run_server(NatsServer(tmp_path)):
        assert (tmp_path / "nats.conf").stat().st_mode & 0o077 == 0


class LazyServer(BrokerProcess):
    """A broker as it comes: synced every two minutes."""

    def config(self) -> str:
        return super().config().replace("sync_interval: always", "")


async def test_a_broker_that_syncs_now_and_then_is_found_out(tmp_path: Path):
    async with run_server(LazyServer(tmp_path)) as server, open_edge(server.settings("edge")) as bus:
        assert (await bus.health.status()).is_durable is False


async def test_health_measures_the_store(server: BrokerProcess, edge: Bus):
    before = (await edge.health.status()).used_share
    for number in range(10):
        await edge.job_store.create(make_key(f"job-{number}"), make_record(f"job-{number}", text="x" * 300_000))
    after = await edge.health.status()
    assert after.used_share - before >= 3_000_000 / (20 * 1024**3)
    assert after.version.startswith("2.")


async def test_without_a_monitor_nobody_knows(server: BrokerProcess):
    settings = server.settings("edge")
    silent = type(settings)(settings.url, settings.user, settings.password)
    async with open_edge(silent) as bus:
        assert (await bus.health.status()).is_durable is None


async def test_a_monitor_that_does_not_answer_is_named(server: BrokerProcess):
    settings = server.settings("edge")
    wrong = type(settings)(settings.url, settings.user, settings.password, "http://127.0.0.1:9")
    async with open_edge(wrong) as bus:
        with pytest.raises(BrokerUnreachable, match=r"monitor http://127\.0\.0\.1:9"):
            await bus.health.status()
