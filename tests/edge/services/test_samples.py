"""Samples of hosts: thinned for longer windows, bounded, kept across a restart, and lost without harm."""

from pathlib import Path

import pytest

from edge.hosts.registry import SAMPLE_INTERVAL_S, SAMPLED_HOSTS_LIMIT, HostSamples
from schemas.host import GpuReport
from tests.support.edge_services import FakeBusServicesRig

GPU = GpuReport("GPU-1", "NVIDIA", memory_total_mb=24_000, memory_free_mb=20_000, temperature_c=61, utilization=98)


@pytest.fixture
def samples(fake: FakeBusServicesRig, tmp_path: Path) -> HostSamples:
    return HostSamples(fake.hosts, tmp_path / "samples.json", fake.time)


async def take(fake: FakeBusServicesRig, samples: HostSamples, hours: float) -> None:
    for _ in range(int(hours * 3600 / SAMPLE_INTERVAL_S)):
        samples.sample(fake.hosts.heartbeats.values())
        fake.time.advance(seconds=SAMPLE_INTERVAL_S)


async def test_longer_windows_have_fewer_samples_an_hour_and_a_bound(fake: FakeBusServicesRig, samples: HostSamples):
    await fake.send_heartbeat("gpu-1", gpus=(GPU,))
    await fake.hosts.refresh()
    await take(fake, samples, hours=2)
    counts = {window: len(samples.series("gpu-1", window).samples) for window in ("1h", "24h", "7d")}
    # The clock has moved on by one interval since the last sample.
    assert counts == {"1h": 239, "24h": 24, "7d": 4}
    last = samples.series("gpu-1", "1h").samples[-1].gpus[0]
    assert (last.memory_used_mb, last.utilization, last.temperature_c, last.power_w) == (4_000, 98, 61, None)


async def test_a_host_that_is_off_leaves_a_gap(fake: FakeBusServicesRig, samples: HostSamples):
    await fake.send_heartbeat("gpu-1")
    await fake.hosts.refresh()
    await take(fake, samples, hours=0.1)
    fake.time.advance(seconds=3600)
    assert samples.series("gpu-1", "1h").samples == ()
    assert len(samples.series("gpu-1", "24h").samples) == 2
    assert samples.series("gpu-2", "24h").samples == ()


async def test_samples_survive_a_restart_and_a_damaged_file_does_not_stop_one(
    fake: FakeBusServicesRig, samples: HostSamples, tmp_path: Path
):
    await fake.send_heartbeat("gpu-1")
    await fake.hosts.refresh()
    samples.sample(fake.hosts.heartbeats.values())
    await samples._save()
    again = HostSamples(fake.hosts, tmp_path / "samples.json", fake.time)
    again._load()
    assert again.series("gpu-1", "7d") == samples.series("gpu-1", "7d")
    (tmp_path / "samples.json").write_bytes(b'{"gpu-1": 5')
    damaged = HostSamples(fake.hosts, tmp_path / "samples.json", fake.time)
    damaged._load()
    assert damaged.series("gpu-1", "7d").samples == ()


async def test_the_number_of_hosts_is_bounded(fake: FakeBusServicesRig, samples: HostSamples):
    for number in range(SAMPLED_HOSTS_LIMIT + 1):
        await fake.send_heartbeat(f"gpu-{number}")
    await fake.hosts.refresh()
    heartbeats = [fake.hosts.heartbeats[f"gpu-{number}"] for number in range(SAMPLED_HOSTS_LIMIT + 1)]
    samples.sample(heartbeats)
    assert samples.series("gpu-0", "1h").samples == ()
    assert len(samples.series(f"gpu-{SAMPLED_HOSTS_LIMIT}", "1h").samples) == 1


async def test_a_disk_that_takes_nothing_costs_the_curves_and_nothing_else(
    fake: FakeBusServicesRig, samples: HostSamples, tmp_path: Path
):
    await fake.send_heartbeat("gpu-1")
    await fake.hosts.refresh()
    samples.sample(fake.hosts.heartbeats.values())
    (tmp_path / "samples.json").mkdir()  # a rename over a folder fails, also for root
    await samples._save()
    assert len(samples.series("gpu-1", "1h").samples) == 1
