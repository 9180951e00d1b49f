"""Hosts join a broker that is three servers: each has the list, or the edge says that one has not."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from bus import roster
from bus.connection import open_edge, open_runner
from bus.port import Bus
from bus.roster import NotReloaded, Roster, hashed, new_password
from bus.settings import BrokerSettings
from schemas.host import Presence
from schemas.words import Priority, Status
from tests.broker import PATIENCE_S
from tests.bus.samples import NOW, key, recorded
from tests.bus.test_rights import ONE
from tests.bus.three import NAMES, Three, three

pytestmark = pytest.mark.timeout(180)


def brought_to(there: Three, names: Sequence[str], kept: Path) -> tuple[str, ...]:
    """A `reload` that copies the list to those servers and has them read it."""
    steps = [f"cp {kept / 'hosts.conf'} {there.folder / name} && kill -HUP {there.running[name].pid}" for name in names]
    return "sh", "-c", " && ".join(steps)


async def works(edge: Bus, settings: BrokerSettings, url: str) -> None:
    """A host does what it does for a job, by way of that server."""
    name = f"by-{url.rpartition(':')[2]}"
    await edge.records.create(key(name), recorded(name))
    await edge.queue.publish(ONE._replace(id=name))
    async with open_runner(replace(settings, url=url)) as runner:
        delivery = await runner.queue.take("echo", Priority.NORMAL, PATIENCE_S)
        assert delivery is not None
        entry = await runner.records.read(key(name))
        assert entry is not None
        await runner.records.update(key(name), recorded(name, status=Status.RUNNING), entry.revision)
        await runner.hosts.put("gpu-1", Presence(host="gpu-1", incarnation=name, at=NOW, since=NOW))
        assert await runner.tombstones.keys() == set()
        await delivery.done()


async def test_a_host_that_joined_works_by_way_of_every_server(tmp_path: Path):
    password, kept = new_password(), tmp_path / "kept"
    kept.mkdir()
    async with three(tmp_path) as there, open_edge(replace(there.settings, replicas=3)) as edge:
        await edge.queue.ensure(["echo"])
        await Roster(there.settings, kept, brought_to(there, NAMES, kept)).write({"gpu-1": hashed(password)})
        host = replace(there.settings, user="runner-gpu-1", password=password)
        for url in there.settings.url.split(","):
            await works(edge, host, url)


async def test_a_server_that_was_not_given_the_list_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roster, "TAKEN_S", 3.0)
    kept = tmp_path / "kept"
    kept.mkdir()
    async with three(tmp_path) as there, open_edge(replace(there.settings, replicas=3)):
        with pytest.raises(NotReloaded, match="not taken over"):
            await Roster(there.settings, kept, brought_to(there, NAMES[:2], kept)).write({"gpu-1": hashed("p")})
