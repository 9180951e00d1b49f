"""What a runner is told: one frozen Struct, read once in `__main__` (schemas.settings), and the pace it works at."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from bus.settings import BrokerSettings
from runner.engines.port import GpuInjection
from runner.gpu.health import GpuHealthPolicy
from runner.gpu.metering import MeterPrice
from runner.gpu.placement import PlacementPolicy
from schemas.ids import Token
from schemas.power import ForeignUse
from schemas.settings_loader import renamed_from


class EdgeConnectionSettings(Struct, frozen=True):
    """Where assets are fetched from and brought to; `key` is an API key with scope runner.

    `pin`: a file with the one certificate to trust there, under whatever name.
    """

    url: str = "http://127.0.0.1:8000"
    key: str = ""
    pin: str | None = None


class GpuProbeSettings(Struct, frozen=True):
    """Seconds: how long a card's probe may take, and the pause after a failed one, doubled each time up to a most."""

    patience_s: float = 300.0
    first_s: float = 10.0
    most_s: float = 600.0


class GpuSettings(Struct, frozen=True):
    """`watch` off: the runner works as on a host without cards.

    `injection`: how Docker gives cards to containers; auto tries each way at start.
    """

    watch: bool = True
    injection: GpuInjection | Literal["auto"] = "auto"
    fitness: GpuHealthPolicy = GpuHealthPolicy()
    placement: PlacementPolicy = PlacementPolicy()
    price: MeterPrice = MeterPrice()
    probe: GpuProbeSettings = GpuProbeSettings()


class WarmSettings(Struct, frozen=True):
    """Containers started ahead of their jobs, for endpoints that say `warm = true`: `count` of each, at most.

    `recycle_s`: one that waited so long makes room for a fresh one (a driver's device rules may change under it).
    `ready_s`: how long loading may take. `memory_reserve_mb` of the host's memory stay free. One that dies is followed
    by the next after `backoff_s`, then twice that, up to `backoff_most_s`.
    """

    on: bool = True
    count: Annotated[int, Meta(ge=1, le=64)] = 1
    recycle_s: Annotated[float, Meta(gt=0)] = 1800.0
    ready_s: Annotated[float, Meta(gt=0)] = 900.0
    memory_reserve_mb: Annotated[int, Meta(ge=0)] = 1024
    backoff_s: Annotated[float, Meta(gt=0)] = 2.0
    backoff_most_s: Annotated[float, Meta(gt=0)] = 300.0


class ProcessSettings(Struct, frozen=True):
    """The process engine. `user`: whom jobs run as; "" for the runner's own user; unset: nobody where that is root."""

    user: str | None = None


class DeadManSettings(Struct, frozen=True):
    """The dead-man timer: with `after_s` the machine runs `poweroff` when edge or broker were silent for so long.

    Only while it holds nothing of any job, and while nobody uses it: `keep_on_for` as at the edge, `[]` for nobody.
    """

    after_s: Annotated[float, Meta(gt=0)] | None = None
    keep_on_for: Annotated[tuple[ForeignUse, ...], renamed_from("stays_for")] = ("users", "programs")


class RunnerIntervals(Struct, frozen=True):
    """How often and how long, in seconds. Tests make it quick; `retry_most_s` bounds the wait between tries.

    `engine_s`: how often an engine that answers is asked whether it still does. `ahead_s`: slots that are all busy for
    so long have time to look for the next job's inputs. `disk_s`: between two looks at what a job uses of the disk;
    `disk_walk_s`: the longest time in which its files are not counted.
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


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """One runner. `data` holds its jobs and its cache; two runners never share it.

    `cache_bytes` bounds the inputs kept; `grace_s` is how long a drain waits for jobs; `poweroff` is the program that
    switches this machine off when the edge says so and nothing is left here. `engine`: auto decides once for a data
    folder (runner.engines.selection).
    """

    host: Token = "local"
    installation: Token = "lamplighter"
    data: Path = Path(".lamplighter/runner")
    endpoints: tuple[Path, ...] = (Path("images"),)
    broker: BrokerSettings = BrokerSettings(user="runner")
    edge: EdgeConnectionSettings = EdgeConnectionSettings()
    engine: Literal["auto", "docker", "process"] = "auto"
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
