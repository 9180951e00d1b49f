"""Settings of a runner, read once by the command line (`schemas.settings_loader`)."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from bus.settings import BrokerSettings
from runner.engines.port import EngineName
from runner.gpu.allocator import GpuSettings
from schemas.backoff import Backoff
from schemas.ids import Token
from schemas.power import ForeignUse
from schemas.settings_loader import renamed_from


class EdgeConnectionSettings(Struct, frozen=True):
    """Address of the edge, from which inputs are fetched and to which outputs are uploaded.

    `key` is an API key with the scope `runner`. `pin`: the public key or certificate to trust there, under any name:
    `sha256:…`, or a PEM file with the certificate.
    """

    url: str = "http://127.0.0.1:8000"
    key: str = ""
    pin: str | None = None


class WarmSettings(Struct, frozen=True):
    """Warm containers, started before their jobs for endpoints with `warm = true`: at most `count` of each.

    `recycle_s` is the age at which a waiting container is replaced, because a driver may change its device rules.
    `ready_s` limits the loading time. `memory_reserve_mb` of the host's memory stay free. After a failed start the next
    one follows `backoff_s` later, then twice that, up to `backoff_most_s`.
    """

    on: bool = True
    count: Annotated[int, Meta(ge=1, le=64)] = 1
    recycle_s: Annotated[float, Meta(gt=0)] = 1800.0
    ready_s: Annotated[float, Meta(gt=0)] = 900.0
    memory_reserve_mb: Annotated[int, Meta(ge=0)] = 1024
    backoff_s: Annotated[float, Meta(gt=0)] = 2.0
    backoff_most_s: Annotated[float, Meta(gt=0)] = 300.0


class ProcessSettings(Struct, frozen=True):
    """The process engine. `user` runs the jobs.

    "" is the runner's own user. Unset, it is the user `nobody` where the runner is root.
    """

    user: str | None = None


class DeadManSettings(Struct, frozen=True):
    """The dead-man timer: the machine runs `poweroff` after edge or broker were silent for `after_s`.

    It does so only while the host has nothing of any job and is not in use. `keep_on_for` lists whose use counts,
    as at the edge; `[]` ignores users.
    """

    after_s: Annotated[float, Meta(gt=0)] | None = None
    keep_on_for: Annotated[tuple[ForeignUse, ...], renamed_from("stays_for")] = ("users", "programs")


class RunnerIntervals(Struct, frozen=True):
    """Intervals and delays in seconds. Tests make them short.

    `heartbeat_s` renews the claim of a job, `presence_s` publishes the host's heartbeat. `retry_least_s` and
    `retry_most_s` bound the backoff. `engine_s` is the interval between two probes of a healthy engine. After all slots
    were busy for `ahead_s`, the next job's inputs are prefetched. `disk_s` is the interval between two checks of a
    job's disk use, and `disk_walk_s` the longest time between two counts of its files.
    """

    heartbeat_s: float = 10.0
    presence_s: float = 3.0
    idle_s: float = 2.0
    retry_least_s: float = 0.2
    retry_most_s: float = 5.0
    tick_s: float = 0.25
    sweep_s: float = 30.0
    image_missing_s: float = 60.0
    engine_s: float = 10.0
    ahead_s: float = 1.0
    disk_s: float = 0.5
    disk_walk_s: float = 5.0

    @property
    def retry_backoff(self) -> Backoff:
        """Return the backoff of calls to the edge, the broker and the engine."""
        return Backoff(self.retry_least_s, self.retry_most_s)


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """One runner. `data` holds its jobs and its cache; two runners never share it.

    `cache_bytes` limits the input cache. `grace_s` is how long a drain waits for jobs. `poweroff` is the program that
    powers this machine off when the edge orders it and nothing is left to do. `engine = auto` decides once for a data
    folder (`runner.engines.selection`). `health_file` is a file to touch after each heartbeat (`lamplighter health`).
    """

    host: Token = "local"
    installation: Token = "lamplighter"
    data: Path = Path(".lamplighter/runner")
    health_file: Path | None = None
    endpoints: tuple[Path, ...] = (Path("images"),)
    broker: BrokerSettings = BrokerSettings(user="runner")
    edge: EdgeConnectionSettings = EdgeConnectionSettings()
    engine: EngineName | Literal["auto"] = "auto"
    docker_socket: str | None = None
    process: ProcessSettings = ProcessSettings()
    slots: Annotated[int, Meta(ge=1, le=256)] = 1
    cache_bytes: Annotated[int, Meta(ge=0)] = 20 * 1024**3
    grace_s: Annotated[float, Meta(ge=0)] = 10.0
    poweroff: tuple[str, ...] = ()
    dead_man: DeadManSettings = DeadManSettings()
    gpu: GpuSettings = GpuSettings()
    warm: WarmSettings = WarmSettings()
    pace: RunnerIntervals = RunnerIntervals()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"

    def __post_init__(self) -> None:
        if self.dead_man.after_s is not None and not self.poweroff:
            raise ValueError('`dead_man` needs a program to run: set poweroff, as in ["systemctl", "poweroff"]')
