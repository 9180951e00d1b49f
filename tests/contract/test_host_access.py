"""Who is on the broker's list comes in, who is not does not: the same for the fake and for a real nats-server."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import pytest

from bus.interface import Bus
from bus.open import open_edge, open_runner
from bus.server import process
from bus.server.process import BrokerReloadFailed, HostAccounts, hash_password, new_password
from bus.settings import BrokerSettings
from schemas.job import Priority
from tests.bus.test_rights import ONE
from tests.support.bus_samples import make_key, make_record
from tests.support.host_access import HOST_ACCESSES, FakeHostAccess, NatsHostAccess
from tests.support.nats_broker import run_broker
from tests.support.wait import wait_for


@pytest.fixture(params=HOST_ACCESSES)
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeHostAccess | NatsHostAccess]:
    async with HOST_ACCESSES[request.param](tmp_path) as made:
        yield made


def hashes(passwords: Mapping[str, str]) -> dict[str, str]:
    return {host: hash_password(password) for host, password in passwords.items()}


async def test_exactly_those_on_the_list_come_in(door: FakeHostAccess | NatsHostAccess):
    passwords = {"gpu-1": new_password(), "gpu-2": new_password()}
    listed = hashes(passwords)
    await door.replace_all(listed)
    assert [await door.admits(*one) for one in passwords.items()] == [True, True]
    for host, password in (("gpu-1", passwords["gpu-2"]), ("gpu-3", passwords["gpu-1"]), ("gpu-1", listed["gpu-1"])):
        assert not await door.admits(host, password)
    await door.replace_all({"gpu-2": listed["gpu-2"]})
    assert not await door.admits("gpu-1", passwords["gpu-1"])
    assert await door.admits("gpu-2", passwords["gpu-2"])
    await door.replace_all({})
    assert not await door.admits("gpu-2", passwords["gpu-2"])


async def test_a_real_one_cuts_the_connection_and_spares_the_others(tmp_path: Path):
    async with run_broker(tmp_path) as server, open_edge(server.settings("edge")) as edge:
        listing = HostAccounts(server.settings("edge"), tmp_path / "broker", server.reload_command)
        passwords = {"gpu-1": new_password(), "gpu-2": new_password()}
        listed = hashes(passwords)
        await listing.replace_all(listed)
        one, two = (BrokerSettings(server.url, f"runner-{host}", passwords[host]) for host in passwords)
        async with open_runner(one) as first, open_runner(two) as second:
            since = second.health.uptime_s()
            await listing.replace_all({"gpu-2": listed["gpu-2"]})

            async def cut() -> bool:
                return not first.health.is_connected

            await wait_for(cut)
            assert edge.health.is_connected
            assert second.health.is_connected
            assert second.health.uptime_s() >= since


async def waiting_take(bus: Bus) -> str | None:
    """Wait for a message, longer than a reload takes."""
    delivery = await bus.job_queue.fetch("echo", Priority.NORMAL, 10.0)
    if delivery is None:
        return None
    await delivery.ack()
    return delivery.pointer.id


async def test_a_message_that_is_waited_for_while_hosts_join_arrives(tmp_path: Path):
    async with run_broker(tmp_path) as server, open_edge(server.settings("edge")) as edge:
        await edge.job_queue.ensure_consumers(["echo"])
        listing = HostAccounts(server.settings("edge"), tmp_path / "broker", server.reload_command)
        passwords = {f"gpu-{number}": new_password() for number in range(4)}
        listed = hashes(passwords)
        await listing.replace_all({"gpu-0": listed["gpu-0"]})
        got: list[str | None] = []
        async with open_runner(BrokerSettings(server.url, "runner-gpu-0", passwords["gpu-0"])) as runner:

            async def work() -> None:
                got.append(await waiting_take(runner))

            for joined in range(1, len(passwords)):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work)
                    await listing.replace_all(dict(list(listed.items())[: joined + 1]))
                    await edge.job_queue.publish(ONE._replace(id=f"job-{joined}"))
        assert got == ["job-1", "job-2", "job-3"]


async def test_the_list_outlives_the_broker_and_is_for_its_owner_only(tmp_path: Path):
    async with HOST_ACCESSES["real"](tmp_path) as door:
        password = new_password()
        await door.replace_all(hashes({"gpu-1": password}))
        text = (tmp_path / "broker" / "hosts.conf").read_text()
        assert password not in text
    async with run_broker(tmp_path) as server, open_edge(server.settings("edge")) as edge:
        await edge.job_store.create(make_key(), make_record())
        async with open_runner(BrokerSettings(server.url, "runner-gpu-1", password)) as runner:
            assert await runner.job_store.read(make_key()) is not None
    for name in ("accounts.conf", "hosts.conf", "nats.conf"):
        assert (tmp_path / "broker" / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize(("argv", "said"), [(("false",), "exit"), (("no-such-program",), "No such file")])
async def test_a_reload_that_fails_is_said(tmp_path: Path, argv: tuple[str, ...], said: str):
    async with run_broker(tmp_path) as server:
        listing = HostAccounts(server.settings("edge"), tmp_path / "broker", argv)
        with pytest.raises(BrokerReloadFailed, match=said):
            await listing.replace_all(hashes({"gpu-1": new_password()}))


async def test_a_broker_that_does_not_read_the_list_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "APPLY_TIMEOUT_S", 0.3)
    async with run_broker(tmp_path) as server:
        listing = HostAccounts(server.settings("edge"), tmp_path, server.reload_command)
        with pytest.raises(BrokerReloadFailed, match=r"includes hosts\.conf among its accounts"):
            await listing.replace_all(hashes({"gpu-1": new_password()}))


async def test_a_folder_that_is_not_the_brokers_is_said(tmp_path: Path):
    listing = HostAccounts(BrokerSettings(), tmp_path / "nowhere", ("true",))
    with pytest.raises(BrokerReloadFailed, match=r"enrollment\.nats_conf_dir"):
        await listing.replace_all({})
