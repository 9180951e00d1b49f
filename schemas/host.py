"""A host as its runner describes it: the heartbeat, which expires, and the capabilities, which outlive it.

Also the Host of `/v1/hosts`.
"""

from enum import StrEnum
from typing import Any

from msgspec import Struct, field, json

from schemas.endpoint import Endpoint
from schemas.events import DECODE_ERRORS
from schemas.installation import Pause
from schemas.job import JobProgram, Moment, Token
from schemas.power import ForeignUse

HEARTBEAT_TTL_S = 15.0  # a heartbeat expires after this
HEARTBEAT_INTERVAL_S = 3.0
HOST_GONE_TIMEOUT_S = 2 * HEARTBEAT_TTL_S  # an observer must have been connected this long before absence counts


class GpuReport(Struct, frozen=True):
    """One GPU as `GET /v1/hosts` shows it. MB are MiB; null where the GPU does not report the value.

    `share_free`: the part of it that no job has, from 0 to 1; null from a runner before 0.3, and for a lost GPU.
    """

    uuid: str
    name: str
    fitness: str = "fit"
    reason: str | None = None
    memory_total_mb: int | None = None
    memory_free_mb: int | None = None
    temperature_c: int | None = None
    utilization: int | None = None
    power_w: float | None = None
    compute_capability: str | None = None
    share_free: float | None = None


class RunningExecution(Struct, frozen=True):
    """One attempt of a job that a host is executing."""

    owner: Token
    id: Token
    endpoint: Token
    round: int
    attempt: int


class WarmPoolStatus(Struct, frozen=True):
    """Warm containers of an endpoint: those that are `ready`, and those that load.

    `why`: the reason why the last one died, until one is ready. `retry_in_s`: seconds before the next one is started.
    """

    endpoint: Token
    ready: int
    loading: int
    why: str | None = None
    retry_in_s: float | None = None


class ImageStatus(Struct, frozen=True, kw_only=True):
    """An image that endpoints of a host name. `state`: `ready`, `pulling` or `missing`.

    `digest`: that of its registry, or the engine's id of an image that was built there. While it is pulled:
    `done_bytes`, `total_bytes` of the layers whose size is known so far, and `percent`, the mean over all layers. A
    ready image may be pulled again, because its tag may have moved. `why`: what went wrong last and what to do;
    `retry_in_s`: seconds before the next try.
    """

    image: str
    endpoints: tuple[Token, ...]
    state: str
    digest: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    percent: int | None = None
    why: str | None = None
    retry_in_s: float | None = None


DISK_FULL_FAILURE = "disk_full"


class VolumeStatus(Struct, frozen=True, kw_only=True):
    """A volume that endpoints of a host name. `state`: `ready`, `filling` or `missing`.

    `volume`: the digest of its content. `names`: its names in the endpoints. While it is filled: `done_bytes`,
    `total_bytes` of the files whose size is known so far, and `percent` of those. `why`: what went wrong last and what
    to do; `failure`: the same as a word, such as DISK_FULL_FAILURE, null from a runner that does not tell it;
    `retry_in_s`: seconds before the next try.
    """

    volume: str
    names: tuple[str, ...]
    endpoints: tuple[Token, ...]
    state: str
    done_bytes: int | None = None
    total_bytes: int | None = None
    percent: int | None = None
    why: str | None = None
    failure: str | None = None
    retry_in_s: float | None = None


ENDPOINTS_TASK = "use the changed endpoints"  # in `blocked_work`: a file of endpoints is not valid; then `: ` and why


class ActivityCounts(Struct, frozen=True):
    """Activity that keeps a host busy, besides the executions that it lists.

    `uploading`: listed executions whose container has ended, but whose outputs are not uploaded or whose message is not
    acked. `unrecovered`: containers of ours that no execution follows (yet), whose outputs may not be saved.
    `programs`: GPUs on which other programs compute. `users`: people who are logged in. `queued`: jobs that wait for
    the pools of this host, added by the edge.
    """

    uploading: int = 0
    unrecovered: int = field(default=0, name="unsaved")
    programs: int = 0
    users: int = 0
    queued: int = 0

    @property
    def foreign_uses(self) -> frozenset[ForeignUse]:
        """The kinds of use of the machine by others: logged-in users, programs on a GPU."""
        counts: tuple[tuple[ForeignUse, int], ...] = (("users", self.users), ("programs", self.programs))
        return frozenset(name for name, count in counts if count)


class ActivityView(Struct, frozen=True):
    """`busy` of a Host. `unsaved` is the old name of `unrecovered`, answered beside it for one release."""

    uploading: int = 0
    unrecovered: int = 0
    unsaved: int = 0
    programs: int = 0
    users: int = 0
    queued: int = 0


def activity_view(counts: ActivityCounts, queued: int) -> ActivityView:
    """Return what a Host answers for `counts`, with the number of jobs that wait for its pools."""
    return ActivityView(
        uploading=counts.uploading,
        unrecovered=counts.unrecovered,
        unsaved=counts.unrecovered,
        programs=counts.programs,
        users=counts.users,
        queued=queued,
    )


class HostHeartbeat(Struct, frozen=True, kw_only=True):
    """The heartbeat in HOSTS. `unschedulable`: why an endpoint cannot start there now (name to WaitReason).

    `injection`: how the engine gives GPUs to containers, as tested at start: cdi, device_request, runtime or none; null
    where there was nothing to test (no GPU, the process engine). `engine_away`: why the engine does not answer, null
    while it does; nothing starts there until it answers again. `run_as`: the user of jobs under the process engine.
    `blocked_work`: the tasks that the runner cannot do now, each with its reason (`fetch input: the edge is not
    reachable`). `version`: that of the runner; null before 0.2. `images`: those of its endpoints; empty under the
    process engine, which has none. `volumes`: those of its endpoints. `isolation`,
    `runtimes`, `gpus_assigned` and `secrets_on_disk`: as in HostView.
    """

    host: Token
    incarnation: Token
    at: Moment
    since: Moment
    draining: bool = False
    slots: int = 1
    engine: str = ""
    engine_away: str | None = None
    run_as: str | None = None
    injection: str | None = None
    gpu_state: str = "none"
    gpus: tuple[GpuReport, ...] = ()
    running: tuple[RunningExecution, ...] = ()
    activity: ActivityCounts = field(default=ActivityCounts(), name="busy")
    warm: tuple[WarmPoolStatus, ...] = ()
    blocked_work: tuple[str, ...] = field(default=(), name="waits")
    unschedulable: dict[str, str] = field(default_factory=dict, name="cannot")
    version: str | None = None
    images: tuple[ImageStatus, ...] = ()
    volumes: tuple[VolumeStatus, ...] = ()
    isolation: str | None = None
    runtimes: tuple[str, ...] = ()
    gpus_assigned: str | None = None
    secrets_on_disk: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether the host works for us, or somebody else uses it."""
        activity = self.activity
        return bool(self.running or activity.uploading or activity.unrecovered or activity.foreign_uses)


class HeartbeatVersion(Struct, frozen=True):
    """The only field of a heartbeat that is read if the rest cannot be."""

    version: str | None = None


_version_decoder = json.Decoder(HeartbeatVersion)


def read_runner_version(heartbeat: bytes) -> str | None:
    """Return the version of the runner that sent an unreadable heartbeat; None if it cannot be read either."""
    try:
        return _version_decoder.decode(heartbeat).version
    except DECODE_ERRORS:
        return None


HOST_ENDPOINTS_LIMIT = 200  # in one offer; the edge keeps up to three queues and one checked schema for each
HOST_ENDPOINTS_LIMIT_BYTES = 1024 * 1024  # of all of them as JSON; the broker's max_payload is 2 MB


class HostCapabilities(Struct, frozen=True, kw_only=True):
    """The endpoints that a host can run, stored in OFFERS also while it is off.

    Of two that differ, the newer one validates. `programs`: what a job of each endpoint runs there. `labels`: those of
    its settings. `unmet`: by endpoint, what the host lacks for it and will lack until somebody changes the host.
    `sources`: by endpoint, the digest of the folder that its image was built from on this host, or that runs as
    processes; without an entry the image came from a registry, or the folder cannot tell.
    """

    host: Token
    incarnation: Token
    at: Moment
    endpoints: tuple[Endpoint, ...] = ()
    programs: dict[str, JobProgram] = field(default_factory=dict)
    slots: int = 1
    gpus: tuple[GpuReport, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    unmet: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


class KeepReason(StrEnum):
    """Why a host with a power driver is on."""

    MAINTENANCE = "maintenance"
    OPERATOR = "operator"
    UNREADABLE = "unreadable"
    JOBS_RUN = "jobs_run"
    JOBS_WAIT = "jobs_wait"
    LOW_JOBS_WAIT = "low_jobs_wait"
    IN_USE = "in_use"
    POOL_MIN = "pool_min"
    COOL_DOWN = "cool_down"
    MIN_ON = "min_on"
    POWER_CYCLE = "power_cycle"
    IDLE_TIMER = "idle_timer"
    EDGE_NEW = "edge_new"
    PROHIBITED = "prohibited"
    DRAINS = "drains"


class KeptOn(Struct, frozen=True):
    """A reason for which a host is on. `until`: when this reason ends by itself; null where that is not known."""

    reason: KeepReason
    message: str
    until: Moment | None = None


class HostView(Struct, frozen=True, kw_only=True):
    """A Host of `/v1/hosts`. `state`: online, draining or off; the power control adds others.

    `busy` null: the host is not up. `unschedulable` says why an endpoint cannot start there now; `cannot` is its old
    name, answered beside it for one release. `engine`: docker or process; `engine_away`: why it does not answer now;
    `run_as`: the user of jobs under the process engine. `waits`: what its runner or its power driver cannot do now,
    with the reasons. `version`: that of its runner. `declared`: the settings have a power driver for it. `images`:
    those of its endpoints, with what has arrived of each; empty under the process engine, which has none. `volumes`:
    the same for the volumes of its endpoints. `maintenance`: since when and by whom it is in maintenance; null while
    it is not. `labels`: those of its runner's settings. `unmet`: by endpoint, which of
    its requirements the host does not meet, also while the host is off. `isolation`: what isolates jobs there whose
    endpoint asks for no runtime: `process` for nothing; `runtimes`: those that an endpoint can ask for.
    `gpus_assigned`: how many of the machine's GPUs its runner uses, and why; null: all.
    `secrets_on_disk`: its runner has no tmpfs for the files of secrets. `kept_on`: why a declared host is on.
    """

    id: Token
    state: str
    since: Moment | None = None
    incarnation: str | None = None
    wake_median_s: float | None = None
    endpoints: tuple[str, ...] = ()
    engine: str | None = None
    engine_away: str | None = None
    run_as: str | None = None
    injection: str | None = None
    gpus: tuple[GpuReport, ...] = ()
    warm: tuple[WarmPoolStatus, ...] = ()
    jobs: tuple[str, ...] = ()
    busy: ActivityView | None = None
    waits: tuple[str, ...] = ()
    unschedulable: dict[str, str] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    hold: dict[str, Any] | None = None
    history: tuple[dict[str, Any], ...] = ()
    version: str | None = None
    declared: bool = False
    images: tuple[ImageStatus, ...] = ()
    volumes: tuple[VolumeStatus, ...] = ()
    maintenance: Pause | None = None
    labels: dict[str, str] = field(default_factory=dict)
    unmet: dict[str, str] = field(default_factory=dict)
    isolation: str | None = None
    runtimes: tuple[str, ...] = ()
    gpus_assigned: str | None = None
    secrets_on_disk: bool = False
    kept_on: tuple[KeptOn, ...] = ()


class AssetTombstone(Struct, frozen=True):
    """A deleted digest, which hosts must remove from their caches before they next take work."""

    sha256: str
    at: Moment
