"""What the edge says of hosts, and why a job waits."""

from datetime import timedelta
from typing import Any

import pytest

from edge.services.hosts import HostNotice
from schemas.host import GpuReport, Running
from schemas.job import Claim
from schemas.reasons import Reason
from tests.edge.services.world import START, World

LATER = (START + timedelta(hours=1)).isoformat()


async def reason(edge: World, **fields: Any) -> str | None:
    job = await edge.submit(**fields)
    return (await edge.viewer.job(await edge.intake.read(job.key))).reason


async def test_a_job_waits_for_its_host(edge: World) -> None:
    assert await reason(edge) == Reason.HOST_OFF
    await edge.offer()
    assert await reason(edge) == Reason.HOST_OFF
    await edge.appear()
    assert await reason(edge) == Reason.BEHIND
    assert await reason(edge, not_before=LATER) == Reason.NOT_BEFORE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"draining": True}, Reason.PAUSED),
        ({"cannot": {"echo": "vram_short"}}, Reason.VRAM_SHORT),
        ({"cannot": {"echo": "of a newer version"}}, Reason.PAUSED),
        ({"cannot": {"other": "vram_short"}}, Reason.BEHIND),
    ],
)
async def test_what_the_host_says_is_told(edge: World, fields: dict[str, Any], expected: Reason) -> None:
    await edge.offer()
    await edge.appear(**fields)
    assert await reason(edge) == expected


async def test_one_able_host_is_enough_and_else_the_nearest_to_able_speaks(edge: World) -> None:
    for host in ("gpu-1", "gpu-2", "gpu-3"):
        await edge.offer(host=host)
    await edge.appear("gpu-1", cannot={"echo": "gpu_unhealthy"})
    assert await reason(edge) == Reason.GPU_UNHEALTHY
    await edge.appear("gpu-2", cannot={"echo": "disk_short"})
    assert await reason(edge) == Reason.DISK_SHORT
    await edge.appear("gpu-3")
    assert await reason(edge) == Reason.BEHIND


async def test_the_host_comes_before_the_quota_and_the_quota_before_the_others(edge: World) -> None:
    for number in range(8):
        await edge.submit(text=str(number))
    assert await reason(edge) == Reason.HOST_OFF
    await edge.offer()
    await edge.appear()
    assert await reason(edge) == Reason.QUOTA
    assert await reason(edge, owner="bob") == Reason.BEHIND


async def test_views_show_presence_over_offers_and_only_ones_own_jobs(edge: World) -> None:
    gpu = GpuReport("GPU-1", "card")
    await edge.offer()
    await edge.offer(host="gpu-2")
    running = (Running("ann", "a", "echo", 1, 1), Running("bob", "b", "echo", 1, 1))
    await edge.appear(gpus=(gpu,), running=running)
    on, off = edge.hosts.views("ann")
    assert (on.state, on.jobs, on.gpus, on.endpoints) == ("online", ("a",), (gpu,), ("echo",))
    assert (off.state, off.incarnation, off.jobs) == ("off", None, ())
    assert edge.hosts.views()[0].jobs == ("a", "b")
    await edge.appear(draining=True)
    assert [view.state for view in edge.hosts.views()] == ["draining", "off"]
    assert edge.hosts.view("nope") is None


async def test_changes_are_told_once_and_not_those_before_the_first_look(edge: World) -> None:
    heard: list[HostNotice] = []
    unlisten = edge.hosts.listen(heard.append)
    await edge.appear()
    assert heard == []
    await edge.appear(draining=True, gpus=(GpuReport("G", "card", fitness="lost"),))
    await edge.appear()
    edge.time.pass_by(seconds=16)
    await edge.hosts.refresh()
    await edge.hosts.refresh()
    await edge.appear()
    unlisten()
    await edge.appear(draining=True)
    kinds = [notice.kind for notice in heard]
    assert kinds == ["gpu_unhealthy", "paused", "gpu_recovered", "resumed", "host_offline", "host_online"]


async def test_another_incarnation_is_gone_and_absence_counts_from_when_it_was_seen(edge: World) -> None:
    old, new = Claim("gpu-1", "i1", 1), Claim("gpu-1", "i2", 1)
    await edge.appear(incarnation="i2")
    assert edge.hosts.gone_for(old) is None  # connected for no longer than a moment
    edge.time.pass_by(seconds=10)
    await edge.appear(incarnation="i2")
    edge.time.pass_by(seconds=30)
    await edge.appear(incarnation="i2")
    assert edge.hosts.gone_for(new) is None
    assert edge.hosts.gone_for(old) == timedelta(0)
    edge.time.pass_by(seconds=7)
    gone = edge.hosts.gone_for(old)
    assert gone is not None
    assert gone >= timedelta(seconds=7)
