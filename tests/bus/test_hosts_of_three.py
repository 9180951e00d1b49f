"""Hosts join a broker that is three servers: each has the list, or the edge says that one has not."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from bus.interface import Bus
from bus.open import open_edge, open_runner
from bus.server import process
from bus.server.process import BrokerReloadFailed, HostAccounts, hash_password, new_password
from bus.settings import BrokerSettings
from schemas.host import HostHeartbeat
from schemas.job import Priority, Status
from tests.bus.test_rights import ONE
from tests.support.broker_trio import NAMES, BrokerTrio, run_broker_trio
from tests.support.bus_samples import NOW, make_key, make_record
from tests.support.wait import WAIT_TIMEOUT_S

pytestmark = pytest.mark.timeout(180)


def brought_to(there: BrokerTrio, names: Sequence[str], kept: Path) -> tuple[str, ...]:
    """A `reload` that copies the list to those servers and has them read it."""
    steps = [f"cp {kept / 'hosts.conf'} {there.folder / name} && kill -HUP {there.running[name].pid}" for name in names]
    return "sh", "-c", " && ".join(steps)


async def works(edge: Bus, settings: BrokerSettings, url: str) -> None:
    """A host does what it does for a job, by way of that server."""
    name = f"by-{url.rpartition(':')[2]}"
    await edge.job_store.create(make_key(name), make_record(name))
    await edge.job_queue.publish(ONE._replace(id=name))
    async with open_runner(replace(settings, url=url)) as runner:
        delivery = await runner.job_queue.fetch("echo", Priority.NORMAL, WAIT_TIMEOUT_S)
        assert delivery is not None
        entry = await runner.job_store.read(make_key(name))
        assert entry is not None
        await runner.job_store.update(make_key(name), make_record(name, status=Status.RUNNING), entry.revision)
        await runner.heartbeats.put("gpu-1", HostHeartbeat(host="gpu-1", incarnation=name, at=NOW, since=NOW))
        assert await runner.tombstones.keys() == set()
        await delivery.ack()


async def test_a_host_that_joined_works_by_way_of_every_server(tmp_path: Path):
    password, kept = new_password(), tmp_path / "kept"
    kept.mkdir()
    async with run_broker_trio(tmp_path) as there, open_edge(replace(there.settings, replicas=3)) as edge:
        await edge.job_queue.ensure_consumers(["echo"])
        await HostAccounts(there.settings, kept, brought_to(there, NAMES, kept)).replace_all(
            {"gpu-1": hash_password(password)}
        )
        host = replace(there.settings, user="runner-gpu-1", password=password)
        for url in there.settings.url.split(","):
            await works(edge, host, url)


async def test_a_server_that_was_not_given_the_list_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "APPLY_TIMEOUT_S", 3.0)
    kept = tmp_path / "kept"
    kept.mkdir()
    async with run_broker_trio(tmp_path) as there, open_edge(replace(there.settings, replicas=3)):
        with pytest.raises(BrokerReloadFailed, match="not applied"):
            await HostAccounts(there.settings, kept, brought_to(there, NAMES[:2], kept)).replace_all(
                {"gpu-1": hash_password("p")}
            )
