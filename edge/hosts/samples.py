"""Samples of each host's GPUs over time, for curves: one ring for each window. Kept in a file across restarts."""

from collections import deque
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import structlog
from anyio import CancelScope, sleep, to_thread
from msgspec import Struct

from bus.secret_files import atomic_write
from edge.core.clock import Clock
from edge.hosts.registry import HostRegistry
from schemas.host import HostHeartbeat
from schemas.job import Moment

SampleWindow = Literal["1h", "24h", "7d"]
SAMPLE_INTERVAL_S = 15.0
SAVE_INTERVAL_S = 300.0
HOSTS_LIMIT = 200  # hosts with samples; the one that was last seen longest ago gives way
_GPUS_LIMIT = 16

_log = structlog.get_logger()


class _Ring(NamedTuple):
    interval_s: float
    size: int


_RINGS: dict[SampleWindow, _Ring] = {
    "1h": _Ring(SAMPLE_INTERVAL_S, 240),
    "24h": _Ring(300.0, 288),
    "7d": _Ring(1800.0, 336),
}


class HostGpuSample(Struct, frozen=True, omit_defaults=True):
    """One GPU at one time. Null: not reported."""

    uuid: str
    utilization: int | None = None
    memory_used_mb: int | None = None
    memory_total_mb: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None


class HostSample(Struct, frozen=True):
    """One host at one time: its state, the number of its running jobs, and its GPUs."""

    at: Moment
    state: Literal["online", "draining"]
    jobs: int
    gpus: tuple[HostGpuSample, ...] = ()


class SampleSeries(NamedTuple):
    """Samples, oldest first, and the time that each stands for."""

    interval_s: float
    samples: tuple[HostSample, ...]


class HostSamples:
    """Samples of the hosts of this edge. `path`: the file that keeps them; it may be lost without harm."""

    def __init__(self, hosts: HostRegistry, path: Path, clock: Clock) -> None:
        self._hosts = hosts
        self._path = path
        self._clock = clock
        self._rings: dict[str, dict[SampleWindow, deque[HostSample]]] = {}

    def series(self, host: str, window: SampleWindow) -> SampleSeries:
        """Return the samples of a host in the last hour, day or week; none for an unknown host."""
        ring = _RINGS[window]
        since = self._clock().timestamp() - ring.interval_s * ring.size
        samples = self._rings.get(host, {}).get(window, ())
        return SampleSeries(ring.interval_s, tuple(s for s in samples if s.at.timestamp() >= since))

    async def run(self) -> None:
        """Load the file, then sample until cancelled, and save now and then and at the end."""
        await to_thread.run_sync(self._load)
        saved_at = self._clock()
        try:
            while True:
                self.sample(self._hosts.heartbeats.values())
                await sleep(SAMPLE_INTERVAL_S)
                if (self._clock() - saved_at).total_seconds() >= SAVE_INTERVAL_S:
                    saved_at = self._clock()
                    await self._save()
        finally:
            with CancelScope(shield=True):
                await self._save()

    def sample(self, heartbeats: Iterable[HostHeartbeat]) -> None:
        """Add one sample of each host to the rings in which its next sample is due."""
        now = self._clock()
        for heartbeat in heartbeats:
            rings = self._rings.pop(heartbeat.host, None) or {
                window: deque(maxlen=ring.size) for window, ring in _RINGS.items()
            }
            self._rings[heartbeat.host] = rings  # the last one: it was seen last
            sample = _make_sample(heartbeat, now)
            for window, ring in _RINGS.items():
                last = rings[window][-1].at if rings[window] else None
                if last is None or (now - last).total_seconds() >= ring.interval_s - SAMPLE_INTERVAL_S / 2:
                    rings[window].append(sample)
        while len(self._rings) > HOSTS_LIMIT:
            del self._rings[next(iter(self._rings))]

    def _load(self) -> None:
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=dict[str, dict[SampleWindow, list[HostSample]]])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("host_samples_unreadable", path=str(self._path), error=str(error))
            return
        for host, rings in stored.items():
            self._rings[host] = {
                window: deque(rings.get(window, ()), maxlen=ring.size) for window, ring in _RINGS.items()
            }

    async def _save(self) -> None:
        data = msgspec.json.encode(
            {host: {window: list(samples) for window, samples in rings.items()} for host, rings in self._rings.items()}
        )
        try:
            await to_thread.run_sync(atomic_write, self._path, data)
        except OSError as error:  # a full disk: the curves are not worth more than that
            _log.warning("host_samples_not_saved", error=str(error))


def _make_sample(heartbeat: HostHeartbeat, now: datetime) -> HostSample:
    gpus = tuple(
        HostGpuSample(
            uuid=gpu.uuid,
            utilization=gpu.utilization,
            memory_used_mb=None
            if gpu.memory_total_mb is None or gpu.memory_free_mb is None
            else gpu.memory_total_mb - gpu.memory_free_mb,
            memory_total_mb=gpu.memory_total_mb,
            temperature_c=gpu.temperature_c,
            power_w=gpu.power_w,
        )
        for gpu in heartbeat.gpus[:_GPUS_LIMIT]
    )
    return HostSample(now, "draining" if heartbeat.draining else "online", len(heartbeat.running), gpus)
