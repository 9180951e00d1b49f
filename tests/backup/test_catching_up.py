"""A restore into three real servers of which one dies before it has anything: it says so, and can be done again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from bus.backup import Snapshot, Snapshots
from bus.connection import open_keeper
from bus.jetstream import JetStream
from bus.port import Unreachable
from bus.topology import STATE, ensure
from tests.backup.test_cluster import WHOLE_S, assert_there, histories, kept, restored
from tests.broker import until
from tests.bus.samples import key, recorded
from tests.bus.three import NAMES, Three, three
from tests.cluster.brokers import leader, whole

SOON_S = 3.0


class Interrupted(JetStream):
    """Something `happens` before a restored stream is to be copied to the other servers."""

    def __init__(self, js: JetStream, happens: Callable[[], Awaitable[None]]) -> None:
        super().__init__(js.wire)
        self._happens = happens

    async def api(self, verb: str, *given: Any) -> Any:
        if verb == f"STREAM.UPDATE.{STATE.name}":
            await self._happens()
        return await super().api(verb, *given)


async def pieces(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def taken(there: Three) -> tuple[Snapshot, list[bytes]]:
    """The records; then there is nothing any more."""
    parts: list[bytes] = []

    async def write(part: bytes) -> None:
        parts.append(part)

    async with open_keeper(there.settings) as (_, snapshots):
        snapshot = await snapshots.take(STATE.name, write)
        await snapshots.clear()
    return snapshot, parts


async def dies_before_it_has_anything(there: Three) -> str:
    """Restore the records; the server that was lost meanwhile, which neither led anything nor was asked anything."""
    snapshot, parts = await taken(there)
    places = dict(zip(NAMES, there.settings.url.split(","), strict=True))
    async with httpx.AsyncClient() as client:
        monitor = there.settings.monitor.split(",")[0]
        asked = (await client.get(f"{monitor}/jsz")).json()["meta_cluster"]["leader"]
    gone: list[str] = []
    async with open_keeper(replace(there.settings, url=places[asked])) as (bus, _):

        async def one_dies() -> None:
            gone.extend(sorted(set(NAMES) - {asked, await leader(bus)}))
            await there.kill(gone[0])

        js = Interrupted(bus.queue._js, one_dies)  # type: ignore[attr-defined]
        with pytest.raises(Unreachable, match=f"do not catch up with {STATE.name}: bring them up, .* --replace"):
            await Snapshots(js, copied_in_s=SOON_S).put(snapshot, pieces(parts), 3)
    return gone[0]


@pytest.mark.long(25)
@pytest.mark.timeout(240)
async def test_a_server_that_never_catches_up_is_told_of_and_the_restore_done_again(tmp_path: Path) -> None:
    async with three(tmp_path / "three") as there:
        settings = replace(there.settings, replicas=3)
        async with open_keeper(settings) as (bus, _):
            await ensure(bus.queue._js, 3)  # type: ignore[attr-defined]
            await bus.records.create(key("j1"), recorded("j1"))
            before = await histories(bus)
            await until(partial(whole, bus), within_s=WHOLE_S)
        await kept(tmp_path / "kept.zip", there.folder, settings)
        there.start(await dies_before_it_has_anything(there))
        await restored(tmp_path / "kept.zip", there.folder, settings, "--replace")
        await assert_there(settings, before, 3)
