"""Settings of a runner, read once by the command line (`schemas.settings_loader`)."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from bus.settings import BrokerSettings
from bus.spans import TraceSettings
from runner.engines.port import EngineName
from runner.gpu.allocator import GpuSettings
from runner.metrics import MetricsListenSettings
from schemas.backoff import Backoff
from schemas.endpoint_parts import LabelName, LabelValue, parse_image_reference
from schemas.job import Token
from schemas.power import ForeignUse
from schemas.settings_loader import renamed_from
from schemas.settings_schema import SECRET

IMAGES_DIR = Path(__file__).resolve().parents[1] / "images"  # the images that come with this program


class EdgeConnectionSettings(Struct, frozen=True):
    """The edge of this runner, and the key for it."""

    url: str = "http://127.0.0.1:8000"
    """Address of the edge, where inputs are fetched and outputs are uploaded."""
    key: Annotated[str, SECRET] = ""
    """An API key with the scope `runner`."""
    pin: str | None = None
    """The public key or certificate to trust, under any name: `sha256:…`, or a PEM file with the certificate."""


class WarmSettings(Struct, frozen=True):
    """Warm containers, started before their jobs."""

    on: bool = True
    """Start containers before their jobs, for endpoints with `warm = true`."""
    count: Annotated[int, Meta(ge=1, le=64)] = 1
    """Warm containers of each endpoint."""
    recycle_s: Annotated[float, Meta(gt=0)] = 1800.0
    """Age at which a waiting container is replaced: the rules by which it may use the GPU can change meanwhile."""
    ready_s: Annotated[float, Meta(gt=0)] = 900.0
    """How long a container may load."""
    memory_reserve_mb: Annotated[int, Meta(ge=0)] = 1024
    """Memory of the host that stays free."""
    backoff_s: Annotated[float, Meta(gt=0)] = 2.0
    """Delay after a failed start. It doubles each time."""
    backoff_most_s: Annotated[float, Meta(gt=0)] = 300.0
    """The longest delay after failed starts."""


class ImageSettings(Struct, frozen=True):
    """The images of endpoints, which the Docker engine pulls from their registries."""

    pull: bool = True
    """Pull the images that endpoints name. `false`: people build or pull them on this host."""
    refresh_s: Annotated[float, Meta(gt=0)] = 900.0
    """Interval between two checks whether the tag of a pulled image now names another image."""
    stall_s: Annotated[float, Meta(gt=0)] = 300.0
    """A pull without progress for this time is started again."""
    reserve_mb: Annotated[int, Meta(ge=0)] = 10_240
    """While less disk is free for images, the runner removes pulled images that no endpoint names any more."""
    retry_least_s: Annotated[float, Meta(gt=0)] = 5.0
    """Delay after a failed pull. It doubles each time."""
    retry_most_s: Annotated[float, Meta(gt=0)] = 300.0
    """The longest delay after failed pulls."""


class VolumeSettings(Struct, frozen=True):
    """The volumes of endpoints: weights and other files, kept once on this machine."""

    folder: Path | None = None
    """Folder that keeps them. Unset: `volumes` in the data folder. Several runners of one machine may share it."""
    max_gb: Annotated[float, Meta(gt=0)] = 200.0
    """Limit of all volumes together. Above it, unneeded volumes are removed, the least recently used first."""
    retry_least_s: Annotated[float, Meta(gt=0)] = 5.0
    """Delay after a failed download. It doubles each time."""
    retry_most_s: Annotated[float, Meta(gt=0)] = 300.0
    """The longest delay after failed downloads."""


class CacheSettings(Struct, frozen=True):
    """The caches of endpoints, one for each owner."""

    max_gb: Annotated[float, Meta(gt=0)] = 20.0
    """Limit of all caches together. Above it, unused caches are removed, the least recently used first."""
    keep_days: Annotated[float, Meta(gt=0)] = 30.0
    """A cache that has not been used for this time is removed."""


class RegistrySettings(Struct, frozen=True):
    """A registry of images. Its name is the first part of an image's name, `docker.io` where it names none."""

    username: str | None = None
    """The name to log in with. Unset: the login in Docker's own `config.json`, if there is one."""
    password_file: Path | None = None
    """File with the password or token, read at each pull."""
    mirror: str | None = None
    """Address of a registry that is asked first for the images of this one, as in `mirror.lan:5000`."""

    def __post_init__(self) -> None:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("`username` and `password_file` belong together: set both, or neither")


class ProcessSettings(Struct, frozen=True):
    """The `[process]` section: the process engine."""

    user: str | None = None
    """The user that runs the jobs. Empty: the runner's own. Unset: `nobody` where the runner is root."""
    sandbox: Literal["auto", "bubblewrap", "none"] = "none"
    """`bubblewrap`: each job runs in a sandbox, or the runner does not start. `auto`: where that is possible."""


class EgressSettings(Struct, frozen=True):
    """Jobs whose endpoint has `network = "egress"`."""

    image: str | None = None
    """An image with Python 3, for jobs whose own image has none. It is pulled like the images of endpoints."""

    def __post_init__(self) -> None:
        if self.image is not None:
            parse_image_reference(self.image)


class DeadManSettings(Struct, frozen=True):
    """The dead-man timer: the machine runs `poweroff` after edge or broker were silent for a time.

    It does so only while the host has nothing of any job and is not in use.
    """

    after_s: Annotated[float, Meta(gt=0)] | None = None
    """How long edge or broker must be silent before the machine runs `poweroff`. Unset: never."""
    keep_on_for: Annotated[tuple[ForeignUse, ...], renamed_from("stays_for")] = ("users", "programs")
    """Which use by others keeps the machine on, as in `[hosts.NAME]` of the edge. `[]` ignores both."""


class RunnerIntervals(Struct, frozen=True):
    """Intervals and delays. Tests make them short."""

    heartbeat_s: float = 10.0
    """Interval between two renewals of a job's claim."""
    presence_s: float = 3.0
    """Interval between two heartbeats of the host."""
    idle_s: float = 2.0
    """How long one request to the broker for the next job waits."""
    retry_least_s: float = 0.2
    """The first delay after a failed call to the edge, the broker or the engine."""
    retry_most_s: float = 5.0
    """The longest delay after failed calls."""
    tick_s: float = 0.25
    """Interval between two checks of a running container."""
    sweep_s: float = 30.0
    """Interval between two searches for containers and files that are not needed."""
    image_missing_s: float = 60.0
    """How long an endpoint whose program was missing is not tried again under the process engine."""
    image_s: float = 10.0
    """Interval between two checks of the endpoint folders, and of the images that the engine has."""
    engine_s: float = 10.0
    """Interval between two probes of a healthy engine."""
    ahead_s: float = 1.0
    """After all slots were busy for this time, the next job's inputs are prefetched."""
    disk_s: float = 0.5
    """Interval between two checks of a job's disk use."""
    disk_walk_s: float = 5.0
    """The longest time between two counts of a job's files."""

    @property
    def retry_backoff(self) -> Backoff:
        """Return the backoff of calls to the edge, the broker and the engine."""
        return Backoff(self.retry_least_s, self.retry_most_s)


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """The settings of one runner process."""

    host: Token = "local"
    """The name of this host."""
    installation: Token = "lamplighter"
    """Marks the containers of this installation, because several installations may share one engine."""
    data: Path = Path(".lamplighter/runner")
    """Folder of this runner's jobs and its cache. Two runners never share it."""
    health_file: Path | None = None
    """File that is touched after each heartbeat, for `lamplighter health`."""
    endpoints: tuple[Path, ...] = (Path("images"),)
    """Each of these folders has an `endpoint.toml`, or contains folders that have one. This host offers their
    endpoints.
    """
    pool: Token | None = None
    """Offer only the endpoints of this pool. Unset: all of them."""
    until_idle_s: Annotated[float, Meta(gt=0)] | None = None
    """The runner ends, with exit code 0, after it has had nothing to do for this time. Unset: never."""
    ends_at: Annotated[float, Meta(ge=0)] | None = None
    """Unix time at which this host ends: no job starts that may run longer. An earlier SLURM_JOB_END_TIME counts."""
    ends_after_s: Annotated[float, Meta(gt=0)] | None = None
    """The same, counted from the start of the runner. Unset: not known."""
    broker: BrokerSettings = BrokerSettings(user="runner")
    edge: EdgeConnectionSettings = EdgeConnectionSettings()
    engine: EngineName | Literal["auto"] = "auto"
    """The engine of the jobs. `auto` decides once for a data folder: Docker if this machine has it, else processes."""
    docker_socket: str | None = None
    """Address of the Docker engine. Unset: as DOCKER_HOST says, else the usual socket."""
    process: ProcessSettings = ProcessSettings()
    images: ImageSettings = ImageSettings()
    registries: dict[str, RegistrySettings] = field(default_factory=dict)
    volumes: VolumeSettings = VolumeSettings()
    caches: CacheSettings = CacheSettings()
    egress: EgressSettings = EgressSettings()
    secrets_folder: Path | None = None
    """Folder of a tmpfs for files of secrets. Unset: in `/dev/shm` if jobs can get folders of it, else in `data`."""
    labels: dict[LabelName, LabelValue] = field(default_factory=dict)
    """Labels of this host, as in `disk = "nvme"`. An endpoint with `labels` runs only on hosts that have them."""
    slots: Annotated[int, Meta(ge=1, le=256)] = 1
    """Jobs that run at the same time."""
    cache_bytes: Annotated[int, Meta(ge=0)] = 20 * 1024**3
    """Size of the cache of input files."""
    grace_s: Annotated[float, Meta(ge=0)] = 10.0
    """How long a drain waits for running jobs."""
    poweroff: tuple[str, ...] = ()
    """The program, with its arguments, that powers this machine off when the edge orders it and no work is left."""
    dead_man: DeadManSettings = DeadManSettings()
    gpu: GpuSettings = GpuSettings()
    warm: WarmSettings = WarmSettings()
    metrics: MetricsListenSettings = MetricsListenSettings()
    pace: RunnerIntervals = RunnerIntervals()
    traces: TraceSettings = TraceSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""
    log_format: Literal["json", "text"] = "text"
    """The format of the log."""

    def __post_init__(self) -> None:
        if self.dead_man.after_s is not None and not self.poweroff:
            raise ValueError('`dead_man` needs a program to run: set poweroff, as in ["systemctl", "poweroff"]')
