"""Views and notices of hosts, and why a job waits for them."""

from datetime import timedelta
from typing import Any

import pytest

from bus.interface import TableRows
from edge.hosts.registry import HostNotice, WakeForecast
from edge.jobs.view import Asker
from schemas.host import (
    HOST_GONE_TIMEOUT_S,
    GpuReport,
    HostCapabilities,
    HostHeartbeat,
    RunningExecution,
    VolumeStatus,
    WarmPoolStatus,
)
from schemas.job import Claim, WaitReason
from schemas.texts import Language
from tests.support.edge_services import ECHO_ENDPOINT, START, FakeBusServicesRig

CANNOT = {"echo": "image_missing"}
LATER = (START + timedelta(hours=1)).isoformat()


async def reason(fake: FakeBusServicesRig, **fields: Any) -> str | None:
    job = await fake.submit(**fields)
    return (await fake.job_views.build(await fake.jobs.read(job.key))).reason


async def test_a_job_waits_for_its_host(fake: FakeBusServicesRig) -> None:
    assert await reason(fake) == WaitReason.NO_HOST
    await fake.announce_capabilities()
    assert await reason(fake) == WaitReason.HOST_OFF_UNSWITCHED
    fake.wake_forecasts.hosts_with_driver = frozenset({"gpu-1"})
    assert await reason(fake) == WaitReason.HOST_OFF
    fake.wake_forecasts.forecast = WakeForecast(WaitReason.HOST_WAKING, "gpu-1", None, None)
    fake.wake_forecasts.hosts_with_driver = frozenset({"gpu-1"})
    assert await reason(fake) == WaitReason.HOST_WAKING
    await fake.send_heartbeat()
    assert await reason(fake) == WaitReason.BEHIND
    assert await reason(fake, not_before=LATER) == WaitReason.NOT_BEFORE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"draining": True}, WaitReason.PAUSED),
        ({"unschedulable": {"echo": "vram_short"}}, WaitReason.VRAM_SHORT),
        ({"unschedulable": {"echo": "of a newer version"}}, WaitReason.PAUSED),
        ({"unschedulable": {"other": "vram_short"}}, WaitReason.BEHIND),
        ({"unschedulable": {"echo": "engine_away"}}, WaitReason.ENGINE_AWAY),
        ({"unschedulable": {"echo": "gpu_none"}}, WaitReason.GPU_NONE),
    ],
)
async def test_what_the_host_reports_is_shown(
    fake: FakeBusServicesRig, fields: dict[str, Any], expected: WaitReason
) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat(**fields)
    assert await reason(fake) == expected


async def test_the_message_says_how_much_of_a_volume_has_arrived(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    fills = [
        VolumeStatus(
            volume=digit * 64,
            names=("weights",),
            endpoints=(endpoint,),
            state=state,
            done_bytes=done,
            total_bytes=4 * 10**9,
            percent=done * 100 // (4 * 10**9),
        )
        for digit, endpoint, state, done in (
            ("a", "echo", "filling", 10**9),
            ("b", "other", "filling", 2 * 10**9),
            ("c", "echo", "missing", 3 * 10**9),
        )
    ]
    await fake.send_heartbeat(unschedulable={"echo": "volume_filling"}, volumes=tuple(fills))
    job = await fake.submit()
    view = await fake.job_views.build(await fake.jobs.read(job.key))
    assert view.reason == WaitReason.VOLUME_FILLING
    assert view.message == "The GPU host downloads the program's files: 25 %, 1.0 / 4.0 GB"
    (host,) = fake.hosts.views()
    assert host.volumes == tuple(fills)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("disk_full", "The GPU host's disk is full: the program's files wait until its operator frees some space"),
        ("not_found", "The GPU host could not download the program's files yet"),
        (None, "The GPU host could not download the program's files yet"),  # a runner that does not tell it
    ],
)
async def test_the_message_tells_a_full_disk_apart(fake: FakeBusServicesRig, failure: str | None, message: str) -> None:
    await fake.announce_capabilities()
    failed = VolumeStatus(
        volume="a" * 64, names=("weights",), endpoints=("echo",), state="missing", why="it says why", failure=failure
    )
    await fake.send_heartbeat(unschedulable={"echo": "volume_missing"}, volumes=(failed,))
    view = await fake.job_views.build(await fake.jobs.read((await fake.submit()).key))
    assert (view.reason, view.message) == (WaitReason.VOLUME_MISSING, message)


async def test_a_paused_endpoint_is_the_reason_until_it_is_resumed(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat(unschedulable={"echo": "endpoint_paused"})
    await fake.hosts.pauses.pause_endpoint("echo", "ops")
    assert await reason(fake) == WaitReason.ENDPOINT_PAUSED
    await fake.hosts.pauses.resume_endpoint("echo")
    assert await reason(fake) == WaitReason.BEHIND  # the host has not read it yet


async def test_a_host_in_maintenance_is_the_reason_only_if_no_other_may_run_the_job(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat(unschedulable={"echo": "host_in_maintenance"})
    await fake.hosts.pauses.start_maintenance("gpu-1", "ops")
    assert await reason(fake) == WaitReason.HOST_IN_MAINTENANCE
    await fake.announce_capabilities(host="gpu-2")
    assert await reason(fake) == WaitReason.HOST_OFF_UNSWITCHED
    await fake.send_heartbeat("gpu-2")
    assert await reason(fake) == WaitReason.BEHIND
    assert fake.wait_reasons.candidate_hosts("echo") == ("gpu-2",)


async def test_a_host_that_is_online_has_its_endpoints(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that a host which comes between the two reads of a poll is not online yet."""
    read_heartbeats, read_capabilities = fake.bus.heartbeats.rows, fake.bus.capabilities.rows

    async def come() -> None:
        at = fake.time()
        offered = HostCapabilities(host="gpu-1", incarnation="i1", at=at, endpoints=(ECHO_ENDPOINT,))
        await fake.bus.capabilities.put("gpu-1", offered)
        await fake.bus.heartbeats.put("gpu-1", HostHeartbeat(host="gpu-1", incarnation="i1", at=at, since=at))

    async def heartbeats_then_come() -> TableRows[HostHeartbeat]:
        rows = await read_heartbeats()
        await come()
        return rows

    async def capabilities_then_come() -> TableRows[HostCapabilities]:
        rows = await read_capabilities()
        await come()
        return rows

    monkeypatch.setattr(fake.bus.heartbeats, "rows", heartbeats_then_come)
    monkeypatch.setattr(fake.bus.capabilities, "rows", capabilities_then_come)
    await fake.hosts.refresh()
    assert fake.hosts.heartbeats == {}
    await fake.hosts.refresh()
    assert fake.hosts.has_online_host("echo")


async def test_a_heartbeat_that_cannot_be_read_is_of_a_host_that_lives(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat()
    notices: list[str] = []
    fake.hosts.subscribe(lambda notice: notices.append(notice.kind))
    fake.time.advance(seconds=2 * HOST_GONE_TIMEOUT_S)
    fake.broker.corrupt("$KV.HOSTS.gpu-1", b'{"host": "gpu-1", "incarnation": 7}')
    await fake.hosts.refresh()
    claim = Claim("gpu-1", "i1", 1)
    assert fake.hosts.gone_for(claim) is None
    assert fake.hosts.has_online_host("echo")
    assert await reason(fake) == WaitReason.BEHIND
    view = fake.hosts.view("gpu-1")
    assert view is not None
    assert (view.state, view.endpoints) == ("online", ("echo",))
    assert view.waits[0].endswith(": upgrade the edge to the release of that runner")
    assert view.version is None
    fake.broker.corrupt("$KV.HOSTS.gpu-1", b'{"host": ["gpu-1"], "version": "0.9.0"}')
    await fake.hosts.refresh()
    view = fake.hosts.view("gpu-1")
    assert view is not None
    assert (view.version, view.waits[0].rpartition(": ")[2]) == (
        "0.9.0",
        "upgrade the edge to the release of that runner (0.9.0)",
    )
    await fake.send_heartbeat()
    assert notices == []
    fake.broker.corrupt("$KV.HOSTS.gpu-1", b"[]")
    await fake.hosts.refresh()
    await fake.bus.heartbeats.delete("gpu-1")
    await fake.hosts.refresh()
    assert notices == ["host_offline"]
    assert fake.hosts.gone_for(claim) == timedelta(0)


async def test_a_host_without_a_gpu_gives_the_reason_only_if_no_other_could_do_better(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities(host="gpu-1")
    await fake.send_heartbeat("gpu-1", unschedulable={"echo": "gpu_none"})
    await fake.announce_capabilities(host="gpu-2")
    assert await reason(fake) == WaitReason.HOST_OFF_UNSWITCHED
    job = await fake.submit()
    told = (await fake.job_views.build(await fake.jobs.read(job.key))).message
    assert told == "gpu-2 is off, and the edge cannot power it on: start its runner"
    fake.wake_forecasts.forecast = WakeForecast(WaitReason.HOST_WAKING, "gpu-2", None, None)
    fake.wake_forecasts.hosts_with_driver = frozenset({"gpu-2"})
    assert await reason(fake) == WaitReason.HOST_WAKING
    await fake.send_heartbeat("gpu-2", unschedulable={"echo": "vram_short"})
    assert await reason(fake) == WaitReason.VRAM_SHORT


async def test_a_host_that_lacks_what_is_required_gives_the_reason_only_if_no_other_could_do_better(
    fake: FakeBusServicesRig,
) -> None:
    unmet = {"echo": "label disk = nvme (it has no such label)"}
    await fake.announce_capabilities(host="gpu-1", unmet=unmet, labels={"zone": "a"})
    assert await reason(fake) == WaitReason.REQUIREMENT_UNMET  # also while it is off
    await fake.send_heartbeat("gpu-1", unschedulable={"echo": "requirement_unmet"})
    job = await fake.submit()
    view = await fake.job_views.build(await fake.jobs.read(job.key))
    assert view.message == ("No host meets its requirements. gpu-1 lacks label disk = nvme (it has no such label)")
    chinese = await fake.job_views.build(await fake.jobs.read(job.key), Asker(Language.ZH))
    assert chinese.message == "没有服务器满足该任务的要求。gpu-1 缺少标签 disk = nvme（该服务器没有此标签）"
    shown = fake.hosts.views()[0]
    assert (shown.unmet, shown.labels) == (unmet, {"zone": "a"})
    await fake.announce_capabilities(host="gpu-2")
    assert await reason(fake) == WaitReason.HOST_OFF_UNSWITCHED
    assert fake.wait_reasons.offline_host_names("echo") == "gpu-2"
    await fake.send_heartbeat("gpu-2")
    assert await reason(fake) == WaitReason.BEHIND
    assert fake.wait_reasons.candidate_hosts("echo") == ("gpu-2",)


async def test_one_able_host_is_enough_and_else_the_nearest_to_able_speaks(fake: FakeBusServicesRig) -> None:
    for host in ("gpu-1", "gpu-2", "gpu-3"):
        await fake.announce_capabilities(host=host)
    await fake.send_heartbeat("gpu-1", unschedulable={"echo": "gpu_unhealthy"})
    assert await reason(fake) == WaitReason.GPU_UNHEALTHY
    await fake.send_heartbeat("gpu-2", unschedulable={"echo": "disk_short"})
    assert await reason(fake) == WaitReason.DISK_SHORT
    await fake.send_heartbeat("gpu-3")
    assert await reason(fake) == WaitReason.BEHIND


async def test_the_host_comes_before_the_quota_and_the_quota_before_the_others(fake: FakeBusServicesRig) -> None:
    for number in range(8):
        await fake.submit(text=str(number))
    assert await reason(fake) == WaitReason.NO_HOST
    await fake.announce_capabilities()
    await fake.send_heartbeat()
    assert await reason(fake) == WaitReason.QUOTA
    assert await reason(fake, owner="bob") == WaitReason.BEHIND


async def test_views_show_presence_over_offers_and_only_ones_own_jobs(fake: FakeBusServicesRig) -> None:
    gpu = GpuReport("GPU-1", "A GPU")
    await fake.announce_capabilities()
    await fake.announce_capabilities(host="gpu-2")
    running = (RunningExecution("ann", "a", "echo", 1, 1), RunningExecution("bob", "b", "echo", 1, 1))
    warm = (WarmPoolStatus("echo", 0, 0, "it exited with code 1", 4.0),)
    await fake.send_heartbeat(
        gpus=(gpu,), running=running, warm=warm, engine="docker", injection="cdi", unschedulable=CANNOT
    )
    on, off = fake.hosts.views("ann")
    assert (on.state, on.jobs, on.gpus, on.endpoints) == ("online", ("a",), (gpu,), ("echo",))
    assert (on.engine, on.injection, on.warm, on.unschedulable) == ("docker", "cdi", warm, CANNOT)
    assert (off.state, off.incarnation, off.jobs, off.injection, off.warm) == ("off", None, (), None, ())
    assert fake.hosts.views()[0].jobs == ("a", "b")
    await fake.send_heartbeat(draining=True)
    assert [view.state for view in fake.hosts.views()] == ["draining", "off"]
    assert fake.hosts.view("nope") is None


async def test_changes_are_reported_once_and_not_those_before_the_first_look(fake: FakeBusServicesRig) -> None:
    heard: list[HostNotice] = []
    unlisten = fake.hosts.subscribe(heard.append)
    await fake.send_heartbeat()
    assert heard == []
    await fake.send_heartbeat(draining=True, gpus=(GpuReport("G", "A GPU", fitness="lost"),))
    await fake.send_heartbeat()
    fake.time.advance(seconds=16)
    await fake.hosts.refresh()
    await fake.hosts.refresh()
    await fake.send_heartbeat()
    unlisten()
    await fake.send_heartbeat(draining=True)
    kinds = [notice.kind for notice in heard]
    assert kinds == ["gpu_unhealthy", "paused", "gpu_recovered", "resumed", "host_offline", "host_online"]


async def test_another_incarnation_is_gone_and_absence_counts_from_when_it_was_seen(fake: FakeBusServicesRig) -> None:
    old, new = Claim("gpu-1", "i1", 1), Claim("gpu-1", "i2", 1)
    await fake.send_heartbeat(incarnation="i2")
    assert fake.hosts.gone_for(old) is None  # connected for no longer than a moment
    fake.time.advance(seconds=10)
    await fake.send_heartbeat(incarnation="i2")
    fake.time.advance(seconds=30)
    await fake.send_heartbeat(incarnation="i2")
    assert fake.hosts.gone_for(new) is None
    assert fake.hosts.gone_for(old) == timedelta(0)
    fake.time.advance(seconds=7)
    gone = fake.hosts.gone_for(old)
    assert gone is not None
    assert gone >= timedelta(seconds=7)
