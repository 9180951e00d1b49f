"""A restore into three real servers of which one dies before it has anything: it says so, and can be done again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from bus.interface import BrokerUnreachable
from bus.nats.jetstream import JetStreamClient
from bus.nats.snapshots import SnapshotClient, StreamSnapshot
from bus.nats.topology import STATE, ensure_streams
from bus.open import open_for_backup
from tests.backup.test_cluster import WHOLE_S, assert_there, histories, kept, restored
from tests.cluster.broker_cluster import find_leader, is_replicated
from tests.support.broker_trio import NAMES, BrokerTrio, run_broker_trio
from tests.support.bus_samples import make_key, make_record
from tests.support.wait import wait_for

SOON_S = 3.0


class Interrupted(JetStreamClient):
    """Something `happens` before a restored stream is to be copied to the other servers."""

    def __init__(self, js: JetStreamClient, happens: Callable[[], Awaitable[None]]) -> None:
        super().__init__(js.connection)
        self._happens = happens

    async def call(self, verb: str, *given: Any) -> Any:
        if verb == f"STREAM.UPDATE.{STATE.name}":
            await self._happens()
        return await super().call(verb, *given)


async def pieces(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def taken(there: BrokerTrio) -> tuple[StreamSnapshot, list[bytes]]:
    """The records; then there is nothing any more."""
    parts: list[bytes] = []

    async def write(part: bytes) -> None:
        parts.append(part)

    async with open_for_backup(there.settings) as (_, snapshots):
        snapshot = await snapshots.save(STATE.name, write)
        await snapshots.delete_all_streams()
    return snapshot, parts


async def dies_before_it_has_anything(there: BrokerTrio) -> str:
    """Restore the records; the server that was lost meanwhile, which neither led anything nor was asked anything."""
    snapshot, parts = await taken(there)
    places = dict(zip(NAMES, there.settings.url.split(","), strict=True))
    async with httpx2.AsyncClient(timeout=60) as client:
        monitor = there.settings.monitor.split(",")[0]
        asked = (await client.get(f"{monitor}/jsz")).json()["meta_cluster"]["leader"]
    gone: list[str] = []
    async with open_for_backup(replace(there.settings, url=places[asked])) as (bus, _):

        async def one_dies() -> None:
            gone.extend(sorted(set(NAMES) - {asked, await find_leader(bus)}))
            await there.kill(gone[0])

        js = Interrupted(bus.job_queue._jetstream, one_dies)  # type: ignore[attr-defined]
        with pytest.raises(BrokerUnreachable, match=f"do not catch up with {STATE.name}: bring them up, .* --replace"):
            await SnapshotClient(js, replication_timeout_s=SOON_S).restore(snapshot, pieces(parts), 3)
    return gone[0]


@pytest.mark.long(25)
@pytest.mark.timeout(240)
async def test_a_server_that_never_catches_up_is_reported_and_the_restore_done_again(tmp_path: Path) -> None:
    async with run_broker_trio(tmp_path / "three") as there:
        settings = replace(there.settings, replicas=3)
        async with open_for_backup(settings) as (bus, _):
            await ensure_streams(bus.job_queue._jetstream, 3)  # type: ignore[attr-defined]
            await bus.job_store.create(make_key("j1"), make_record("j1"))
            before = await histories(bus)
            await wait_for(partial(is_replicated, bus), timeout_s=WHOLE_S)
        await kept(tmp_path / "kept.zip", there.folder, settings)
        there.start(await dies_before_it_has_anything(there))
        await restored(tmp_path / "kept.zip", there.folder, settings, "--replace")
        await assert_there(settings, before, 3)
