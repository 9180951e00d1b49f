"""A broker whose store is small: new work is refused while there is still room for the results of the old."""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from bus import topology
from bus.server import Server
from edge.services.gate import FULL_AT
from schemas.events import Released, Started, Succeeded
from tests.broken import small
from tests.broken.vandal import put
from tests.e2e.conftest import Lit, lighting
from tests.e2e.installation import IMAGES, Installation, until
from tests.e2e.looking import UNHURRIED, ended, events, history, nothing_left, submit, working

MIB = 1 << 20
STORE = 24 * MIB
BALLAST = "usage.job.ballast.{}.1"


@pytest.fixture
def shrunken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "STREAMS", small.shrunken())


@pytest.fixture
async def tight(tmp_path: Path, shrunken: None) -> AsyncIterator[Lit]:
    installation = Installation(tmp_path, "process", None, {"edge": "tests.broken.small"})
    installation.server = Server(tmp_path / "broker", store_bytes=STORE)
    async with lighting(installation, (IMAGES / "echo",)) as lit:
        await installation.start_runner(endpoints=(IMAGES / "echo",), LAMPLIGHTER_SLOTS="2")
        yield lit
        print(installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def used(lit: Lit) -> float:
    return (await lit.bus.link.health()).used


async def fill(lit: Lit, names: Iterator[int], share: float, size: int = MIB) -> None:
    """Up to `share` of the store, or until the broker takes no more."""
    while await used(lit) < share:
        if b'"error"' in await put(lit, BALLAST.format(next(names)), bytes(size)):
            return


async def refused(lit: Lit) -> bool:
    """Whether new work is, with 507."""
    answer = await lit.ann._http.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "more"}})
    assert answer.status_code in {202, 507}, answer.text
    assert answer.status_code == 202 or answer.json()["code"] == "store_full"
    return answer.status_code == 507


@pytest.mark.long(19)
@pytest.mark.timeout(80)
async def test_a_full_broker_refuses_new_work_and_loses_no_result(tight: Lit):
    early, late = await submit(tight, UNHURRIED, seconds=3), await submit(tight, UNHURRIED, seconds=8)
    for job in (early, late):
        await working(tight, job.id)
    names = count()
    await fill(tight, names, FULL_AT)
    await until(lambda: refused(tight), 20)
    assert (await ended(tight.ann, early.id)).status == "succeeded"  # there is room for what was begun

    for size in (MIB, 1 << 14, 1 << 8):
        await fill(tight, names, 2.0, size)

    async def exited() -> bool:
        found = [one for one in await tight.installation.containers() if one.identity.job == late.id]
        return [one.state for one in found] == ["exited"]

    await until(exited, 40)
    assert await refused(tight)
    assert await tight.bus.usage.erase("ballast")
    assert (await ended(tight.ann, late.id)).status == "succeeded"
    for job in (early, late):
        entries = await history(tight, job.id)
        assert [len(events(entries, kind)) for kind in (Started, Released, Succeeded)] == [1, 0, 1]

    async def taken() -> bool:
        return not await refused(tight)

    await until(taken, 20)
    await nothing_left(tight)
