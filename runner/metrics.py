"""The metrics of one runner process, and the listener at which Prometheus reads them.

The listener runs in a thread. It reads the last heartbeat, which never changes once it is built, and the disk. Events
are counted by the parts of the runner in the instruments.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import structlog
from msgspec import Struct

from bus.metric_registry import MetricRegistry, MetricSnapshot, serve_metrics
from schemas.gpu import GpuHealthStatus
from schemas.host import GpuReport, HostHeartbeat
from schemas.metrics import MetricOwner

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535
MIB = 1024 * 1024
_PERCENT = 100

_log = structlog.get_logger()


class ListenAddress(NamedTuple):
    """An IP address and a port; port 0 picks a free one."""

    host: str
    port: int


class MetricsListenSettings(Struct, frozen=True):
    """The `[metrics]` section of the runner."""

    listen: str = ""
    """Where the runner serves `/metrics`, without a key: a port of 127.0.0.1, as in `9108`, or address:port. Empty:
    nowhere.
    """

    def __post_init__(self) -> None:
        _ = self.address

    @property
    def address(self) -> ListenAddress | None:
        """Return the address to listen at, None for nowhere. Raises ValueError."""
        if not self.listen:
            return None
        host, _, port = self.listen.rpartition(":")
        try:
            return ListenAddress(str(ip_address(host.strip("[]") or LOOPBACK)), _parse_port(port))
        except ValueError:
            raise ValueError(
                f"`listen` is {self.listen!r}: it must be a port, as in 9108, or address:port, as in 10.0.0.5:9108"
            ) from None


def _parse_port(text: str) -> int:
    """Return the number of a port. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_PORT):
        raise ValueError(text)
    return int(text)


class RunnerMetrics:
    """The instruments of one runner process. `heartbeat`: the last one, None before the first."""

    def __init__(self) -> None:
        registry = MetricRegistry(MetricOwner.RUNNER)
        self.registry = registry
        self.attempts = registry.counter("lamplighter_runner_attempts_total")
        self.engine_starts = registry.histogram("lamplighter_runner_engine_start_duration_seconds")
        self.cache_hits = registry.counter("lamplighter_runner_cache_hits_total")
        self.cache_misses = registry.counter("lamplighter_runner_cache_misses_total")
        self.warm_hits = registry.counter("lamplighter_runner_warm_hits_total")
        self.warm_misses = registry.counter("lamplighter_runner_warm_misses_total")
        self.heartbeat: HostHeartbeat | None = None


class ScrapeReader:
    """Reads for each scrape what no event counts. Blocking.

    `data`: the runner's data folder. `cache`: the folder of the input cache.
    """

    def __init__(self, metrics: RunnerMetrics, data: Path, cache: Path) -> None:
        self._metrics = metrics
        self._data = data
        self._cache = cache

    def read(self, snapshot: MetricSnapshot) -> None:
        """Add everything to the values of a scrape."""
        try:
            usage = shutil.disk_usage(self._data)
            snapshot.set("lamplighter_runner_disk_free_bytes", usage.free)
            snapshot.set("lamplighter_runner_disk_size_bytes", usage.total)
            snapshot.set("lamplighter_runner_cache_bytes", folder_bytes(self._cache))
        except OSError as error:
            _log.warning("metrics_incomplete", part="disk", error=str(error))
        if self._metrics.heartbeat is not None:
            _set_heartbeat(snapshot, self._metrics.heartbeat)


def folder_bytes(folder: Path) -> int:
    """Return the size of the files directly in a folder. Blocking."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # it was evicted in the meantime
    return total


def _set_heartbeat(snapshot: MetricSnapshot, heartbeat: HostHeartbeat) -> None:
    snapshot.set("lamplighter_runner_info", 1, heartbeat.host, heartbeat.engine, heartbeat.version or "")
    snapshot.set("lamplighter_runner_slots", heartbeat.slots)
    snapshot.set("lamplighter_runner_draining", heartbeat.draining)
    for endpoint in {run.endpoint for run in heartbeat.running}:
        running = sum(run.endpoint == endpoint for run in heartbeat.running)
        snapshot.set("lamplighter_runner_jobs", running, endpoint)
    for pool in heartbeat.warm:
        snapshot.set("lamplighter_runner_warm_containers", pool.ready, pool.endpoint, "ready")
        snapshot.set("lamplighter_runner_warm_containers", pool.loading, pool.endpoint, "loading")
    for gpu in heartbeat.gpus:
        _set_gpu(snapshot, gpu)


def _set_gpu(snapshot: MetricSnapshot, gpu: GpuReport) -> None:
    snapshot.set("lamplighter_gpu_info", 1, gpu.uuid, gpu.name)
    for fitness in GpuHealthStatus:
        snapshot.set("lamplighter_gpu_fitness", gpu.fitness == fitness, gpu.uuid, fitness)
    if gpu.temperature_c is not None:
        snapshot.set("lamplighter_gpu_temperature_celsius", gpu.temperature_c, gpu.uuid)
    if gpu.power_w is not None:
        snapshot.set("lamplighter_gpu_power_watts", gpu.power_w, gpu.uuid)
    if gpu.utilization is not None:
        snapshot.set("lamplighter_gpu_utilization_ratio", gpu.utilization / _PERCENT, gpu.uuid)
    if gpu.memory_total_mb is not None:
        snapshot.set("lamplighter_gpu_memory_size_bytes", gpu.memory_total_mb * MIB, gpu.uuid)
        if gpu.memory_free_mb is not None:
            used_mb = gpu.memory_total_mb - gpu.memory_free_mb
            snapshot.set("lamplighter_gpu_memory_used_bytes", used_mb * MIB, gpu.uuid)


@contextmanager
def listen_for_scrapes(address: ListenAddress, metrics: RunnerMetrics, reader: ScrapeReader) -> Iterator[int]:
    """Answer `/metrics` at `address` during the block; yield the port. Raises OSError if it cannot be opened."""
    metrics.registry.read_at_scrapes(reader.read)
    with serve_metrics(metrics.registry, address.host, address.port) as port:
        yield port
