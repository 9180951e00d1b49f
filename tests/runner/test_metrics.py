"""The metrics of a runner: what it counts, what it reads for a scrape, and where it listens."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest

from runner.assets.cache import InputCache
from runner.metrics import ListenAddress, MetricsListenSettings, RunnerMetrics, ScrapeReader, listen_for_scrapes
from schemas.host import GpuReport, HostHeartbeat, RunningExecution, WarmPoolStatus
from tests.runner.warm_programs import warm_endpoint, warm_program
from tests.support.asset_server import sha256_of
from tests.support.fake_asset_fetch import FakeAssetFetch
from tests.support.metric_samples import Series, parse_samples, series_of
from tests.support.prometheus_tools import find_program
from tests.support.runner_environment import RunnerEnvironment, succeed
from tests.support.wait import wait_for

NOW = datetime(2026, 11, 30, tzinfo=UTC)
HEARTBEAT = HostHeartbeat(
    host="gpu-1",
    incarnation="i1",
    at=NOW,
    since=NOW,
    slots=2,
    engine="docker",
    version="1.2.3",
    gpus=(
        GpuReport("GPU-0", "A GPU", "unhealthy", None, 24_000, 20_000, 71, 55, 212.5),
        GpuReport("GPU-1", "silent"),
    ),
    running=(RunningExecution("ann", "one", "echo", 1, 1), RunningExecution("bob", "two", "echo", 1, 1)),
    warm=(WarmPoolStatus("echo", 1, 2),),
)


def scrape(metrics: RunnerMetrics, folder: Path) -> str:
    """Return what one scrape over HTTP answers."""
    reader = ScrapeReader(metrics, folder, folder / "cache")
    with listen_for_scrapes(ListenAddress("127.0.0.1", 0), metrics, reader) as port:
        reply = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
    assert reply.status_code == 200
    return reply.text


def values(metrics: RunnerMetrics) -> dict[Series, float]:
    """Return the values of the instruments."""
    return parse_samples(metrics.registry.render(metrics.registry.snapshot()).decode())


def test_a_scrape_answers_the_last_heartbeat_and_the_disk(tmp_path: Path) -> None:
    metrics = RunnerMetrics()
    metrics.heartbeat = HEARTBEAT
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(bytes(1000))
    text = scrape(metrics, tmp_path)
    found = parse_samples(text)
    assert found["lamplighter_runner_info", "gpu-1", "docker", "1.2.3"] == 1
    assert (found["lamplighter_runner_slots",], found["lamplighter_runner_draining",]) == (2, 0)
    assert found["lamplighter_runner_jobs", "echo"] == 2
    assert series_of(found, "lamplighter_runner_warm_containers") == {("echo", "ready"): 1, ("echo", "loading"): 2}
    assert found["lamplighter_runner_cache_bytes",] == 1000
    assert found["lamplighter_runner_disk_size_bytes",] > found["lamplighter_runner_disk_free_bytes",] > 0
    assert found["lamplighter_gpu_temperature_celsius", "GPU-0"] == 71
    assert found["lamplighter_gpu_power_watts", "GPU-0"] == 212.5
    assert found["lamplighter_gpu_utilization_ratio", "GPU-0"] == 0.55
    assert found["lamplighter_gpu_memory_used_bytes", "GPU-0"] == 4000 * 1024 * 1024
    assert found["lamplighter_gpu_memory_size_bytes", "GPU-0"] == 24_000 * 1024 * 1024
    assert (
        found["lamplighter_gpu_fitness", "GPU-0", "unhealthy"] == found["lamplighter_gpu_fitness", "GPU-1", "fit"] == 1
    )
    assert found["lamplighter_gpu_fitness", "GPU-0", "fit"] == 0
    assert found["lamplighter_gpu_info", "GPU-1", "silent"] == 1
    assert ("lamplighter_gpu_power_watts", "GPU-1") not in found, "it does not report its power"
    argv = [find_program("promtool"), "check", "metrics"]
    checked = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_before_the_first_heartbeat_and_without_a_cache_the_rest_is_answered(tmp_path: Path) -> None:
    found = parse_samples(scrape(RunnerMetrics(), tmp_path))
    assert found["lamplighter_runner_disk_size_bytes",] > 0
    assert found["process_start_time_seconds",] > 0
    assert not series_of(found, "lamplighter_runner_slots")


async def test_starts_and_warm_containers_are_counted(tmp_path: Path) -> None:
    world = RunnerEnvironment(tmp_path)
    world.programs = {"ready": warm_program(succeed), "cold": succeed}
    world.kinds = {"ready": warm_endpoint("ready", tmp_path)}
    async with world.run_runner() as runner:
        await world.wait_for_warm("ready")
        await world.wait_until_ended(await world.submit("ready"))
        metrics = runner.context.metrics

        async def is_published() -> bool:
            return metrics.heartbeat is not None

        await wait_for(is_published)
    found = values(metrics)
    assert found["lamplighter_runner_attempts_total", "ready"] == 1
    assert found["lamplighter_runner_warm_hits_total", "ready"] == 1
    assert not series_of(found, "lamplighter_runner_warm_misses_total")


async def test_a_cold_start_is_measured(tmp_path: Path) -> None:
    world = RunnerEnvironment(tmp_path)
    async with world.run_runner() as runner:
        await world.wait_until_ended(await world.submit("well"))
        found = values(runner.context.metrics)
    assert found["lamplighter_runner_attempts_total", "well"] == 1
    assert found["lamplighter_runner_engine_start_duration_seconds_count",] == 1
    assert not series_of(found, "lamplighter_runner_warm_hits_total")


async def test_hits_and_misses_of_the_cache_are_counted(tmp_path: Path) -> None:
    metrics, data = RunnerMetrics(), b"input"
    cache = InputCache(tmp_path / "cache", 10_000, FakeAssetFetch(data), metrics=metrics)
    for job in ("one", "two", "three"):
        await cache.stage("ann", sha256_of(data), tmp_path / job)
    found = values(metrics)
    assert found["lamplighter_runner_cache_misses_total",] == 1
    assert found["lamplighter_runner_cache_hits_total",] == 2


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("", None),
        ("9108", ("127.0.0.1", 9108)),
        ("10.0.0.5:9108", ("10.0.0.5", 9108)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:9108", ("::1", 9108)),
    ],
)
def test_a_port_alone_is_of_loopback(listen: str, address: tuple[str, int] | None) -> None:
    assert MetricsListenSettings(listen).address == address


@pytest.mark.parametrize("listen", ["gpu-1:9108", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "x", "127.0.0.1:-1"])
def test_another_address_is_refused_with_what_it_must_be(listen: str) -> None:
    with pytest.raises(ValueError, match="must be a port, as in 9108"):
        MetricsListenSettings(listen)
