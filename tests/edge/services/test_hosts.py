"""What the edge says of hosts, and why a job waits."""

from datetime import timedelta
from typing import Any

import pytest

from edge.services.hosts import HostNotice
from schemas.host import GpuReport, Running, Warm
from schemas.job import Claim
from schemas.reasons import Reason
from tests.edge.services.world import START, FakeWorld

CANNOT = {"echo": "image_missing"}
LATER = (START + timedelta(hours=1)).isoformat()


async def reason(fake: FakeWorld, **fields: Any) -> str | None:
    job = await fake.submit(**fields)
    return (await fake.viewer.job(await fake.intake.read(job.key))).reason


async def test_a_job_waits_for_its_host(fake: FakeWorld) -> None:
    assert await reason(fake) == Reason.NO_HOST
    await fake.offer()
    assert await reason(fake) == Reason.HOST_OFF_UNSWITCHED
    fake.hosts.ask_power(lambda _: None, lambda host: host == "gpu-1")  # its switch has nothing to say just now
    assert await reason(fake) == Reason.HOST_OFF
    fake.hosts.ask_power(lambda _: (Reason.HOST_WAKING, "gpu-1", None, None), lambda host: host == "gpu-1")
    assert await reason(fake) == Reason.HOST_WAKING
    await fake.appear()
    assert await reason(fake) == Reason.BEHIND
    assert await reason(fake, not_before=LATER) == Reason.NOT_BEFORE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"draining": True}, Reason.PAUSED),
        ({"cannot": {"echo": "vram_short"}}, Reason.VRAM_SHORT),
        ({"cannot": {"echo": "of a newer version"}}, Reason.PAUSED),
        ({"cannot": {"other": "vram_short"}}, Reason.BEHIND),
        ({"cannot": {"echo": "engine_away"}}, Reason.ENGINE_AWAY),
        ({"cannot": {"echo": "gpu_none"}}, Reason.GPU_NONE),
    ],
)
async def test_what_the_host_says_is_told(fake: FakeWorld, fields: dict[str, Any], expected: Reason) -> None:
    await fake.offer()
    await fake.appear(**fields)
    assert await reason(fake) == expected


async def test_a_host_without_a_card_speaks_only_where_no_other_could_do_better(fake: FakeWorld) -> None:
    await fake.offer(host="gpu-1")
    await fake.appear("gpu-1", cannot={"echo": "gpu_none"})
    await fake.offer(host="gpu-2")
    assert await reason(fake) == Reason.HOST_OFF_UNSWITCHED
    job = await fake.submit()
    told = (await fake.viewer.job(await fake.intake.read(job.key))).message
    assert told == "Nobody can switch gpu-2 on from here: start its runner"
    fake.hosts.ask_power(lambda _: (Reason.HOST_WAKING, "gpu-2", None, None), lambda host: host == "gpu-2")
    assert await reason(fake) == Reason.HOST_WAKING
    await fake.appear("gpu-2", cannot={"echo": "vram_short"})
    assert await reason(fake) == Reason.VRAM_SHORT


async def test_one_able_host_is_enough_and_else_the_nearest_to_able_speaks(fake: FakeWorld) -> None:
    for host in ("gpu-1", "gpu-2", "gpu-3"):
        await fake.offer(host=host)
    await fake.appear("gpu-1", cannot={"echo": "gpu_unhealthy"})
    assert await reason(fake) == Reason.GPU_UNHEALTHY
    await fake.appear("gpu-2", cannot={"echo": "disk_short"})
    assert await reason(fake) == Reason.DISK_SHORT
    await fake.appear("gpu-3")
    assert await reason(fake) == Reason.BEHIND


async def test_the_host_comes_before_the_quota_and_the_quota_before_the_others(fake: FakeWorld) -> None:
    for number in range(8):
        await fake.submit(text=str(number))
    assert await reason(fake) == Reason.NO_HOST
    await fake.offer()
    await fake.appear()
    assert await reason(fake) == Reason.QUOTA
    assert await reason(fake, owner="bob") == Reason.BEHIND


async def test_views_show_presence_over_offers_and_only_ones_own_jobs(fake: FakeWorld) -> None:
    gpu = GpuReport("GPU-1", "card")
    await fake.offer()
    await fake.offer(host="gpu-2")
    running = (Running("ann", "a", "echo", 1, 1), Running("bob", "b", "echo", 1, 1))
    warm = (Warm("echo", 0, 0, "it exited with code 1", 4.0),)
    await fake.appear(gpus=(gpu,), running=running, warm=warm, engine="docker", injection="cdi", cannot=CANNOT)
    on, off = fake.hosts.views("ann")
    assert (on.state, on.jobs, on.gpus, on.endpoints) == ("online", ("a",), (gpu,), ("echo",))
    assert (on.engine, on.injection, on.warm, on.cannot) == ("docker", "cdi", warm, CANNOT)
    assert (off.state, off.incarnation, off.jobs, off.injection, off.warm) == ("off", None, (), None, ())
    assert fake.hosts.views()[0].jobs == ("a", "b")
    await fake.appear(draining=True)
    assert [view.state for view in fake.hosts.views()] == ["draining", "off"]
    assert fake.hosts.view("nope") is None


async def test_changes_are_told_once_and_not_those_before_the_first_look(fake: FakeWorld) -> None:
    heard: list[HostNotice] = []
    unlisten = fake.hosts.listen(heard.append)
    await fake.appear()
    assert heard == []
    await fake.appear(draining=True, gpus=(GpuReport("G", "card", fitness="lost"),))
    await fake.appear()
    fake.time.pass_by(seconds=16)
    await fake.hosts.refresh()
    await fake.hosts.refresh()
    await fake.appear()
    unlisten()
    await fake.appear(draining=True)
    kinds = [notice.kind for notice in heard]
    assert kinds == ["gpu_unhealthy", "paused", "gpu_recovered", "resumed", "host_offline", "host_online"]


async def test_another_incarnation_is_gone_and_absence_counts_from_when_it_was_seen(fake: FakeWorld) -> None:
    old, new = Claim("gpu-1", "i1", 1), Claim("gpu-1", "i2", 1)
    await fake.appear(incarnation="i2")
    assert fake.hosts.gone_for(old) is None  # connected for no longer than a moment
    fake.time.pass_by(seconds=10)
    await fake.appear(incarnation="i2")
    fake.time.pass_by(seconds=30)
    await fake.appear(incarnation="i2")
    assert fake.hosts.gone_for(new) is None
    assert fake.hosts.gone_for(old) == timedelta(0)
    fake.time.pass_by(seconds=7)
    gone = fake.hosts.gone_for(old)
    assert gone is not None
    assert gone >= timedelta(seconds=7)
