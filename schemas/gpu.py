"""What a GPU says of itself, and what we make of it.

The names follow NVML; a value that the card or its driver does not offer is None, never a made-up number.
MB are MiB (2**20 bytes), as nvidia-smi prints them.
"""

from enum import IntFlag, StrEnum

from msgspec import Struct


class GpuMonitorState(StrEnum):
    """How much of the truth the GPU watch can tell just now."""

    OK = "ok"
    NONE = "none"  # no NVML library or no card: the host runs what needs no GPU
    NO_DRIVER = "no_driver"  # the library is there, the kernel module is not
    MISMATCH = "mismatch"  # the driver was upgraded under the loaded library
    HUNG = "hung"  # the driver does not answer
    FAILED = "failed"  # the watching process died


class GpuRecoveryAction(StrEnum):
    """What the driver itself asks for (NVML field 230, driver 565 and newer), in the order of NVML's numbers."""

    NONE = "none"
    GPU_RESET = "gpu_reset"
    NODE_REBOOT = "node_reboot"
    DRAIN_P2P = "drain_p2p"
    DRAIN_AND_RESET = "drain_and_reset"
    RECOVER_IMEX = "recover_imex"
    BUS_RESET = "bus_reset"
    SYSTEM_REBOOT = "system_reboot"
    UNKNOWN = "unknown"  # an action newer than this table


class ClockReasons(IntFlag):
    """Why the clocks are where they are (nvml.h, nvmlClocksEventReason*); several may hold at once."""

    IDLE = 0x1
    APPLICATION_CLOCKS = 0x2
    SW_POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    SYNC_BOOST = 0x10
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    HW_POWER_BRAKE = 0x80
    DISPLAY_CLOCKS = 0x100


class RemappedRows(Struct, frozen=True):
    """Memory rows that were replaced by spares. `pending` needs a reset, `failed` a new card."""

    correctable: int = 0
    uncorrectable: int = 0
    pending: bool = False
    failed: bool = False


class GpuProcess(Struct, frozen=True):
    """A process that holds memory of the card, by its pid on the host.

    `containers` are the ids of the containers it runs in, outermost first; `ancestors` its parents, nearest first.
    Both are empty when /proc does not show the process: it ended just now, or lives outside our pid namespace (`seen`).
    `graphics` is true for a process that only draws (a desktop, a game).
    """

    pid: int
    used_mb: int | None = None
    containers: tuple[str, ...] = ()
    ancestors: tuple[int, ...] = ()
    seen: bool = True
    graphics: bool = False


class GpuSample(Struct, frozen=True, kw_only=True):
    """One look at one card.

    `memory_used_mb` excludes what the driver keeps for itself (`memory_reserved_mb`, None where only NVML's older
    call exists, which counts it as used). `slowdown_c` is the card's own threshold. `ecc_uncorrected` counts
    since the driver was loaded. `utilization` is the percent of the time in which any kernel ran.
    `energy_mj` only grows until the driver is reloaded.
    """

    index: int
    uuid: str
    name: str
    memory_total_mb: int
    memory_used_mb: int
    memory_free_mb: int
    memory_reserved_mb: int | None = None
    temperature_c: int | None = None
    slowdown_c: int | None = None
    clock_reasons: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    rows: RemappedRows | None = None
    retired_pending: bool | None = None
    recovery: GpuRecoveryAction | None = None
    utilization: int | None = None
    power_w: float | None = None
    energy_mj: int | None = None
    processes: tuple[GpuProcess, ...] = ()


class LostGpu(Struct, frozen=True):
    """A card that does not answer. `uuid` is empty when it never told us even that."""

    uuid: str
    why: str
    index: int | None = None
    name: str = ""


class XidEvent(Struct, frozen=True, tag="xid"):
    """The driver's report of an error on one card. `at` is Unix time, seconds; `uuid` empty: it did not say which."""

    uuid: str
    xid: int
    at: float


class GpuSnapshot(Struct, frozen=True):
    """The latest word about all cards of this host.

    `at` is the Unix time of the reading that `samples` come from (seconds; 0: there was none yet). Unless `state`
    is ok the samples are history: good to show, not to place work by. `why` says what is wrong and what to do.
    """

    state: GpuMonitorState
    at: float = 0.0
    samples: tuple[GpuSample, ...] = ()
    lost: tuple[LostGpu, ...] = ()
    driver: str = ""
    why: str = ""


class GpuHealthStatus(StrEnum):
    """Whether a card may take work."""

    FIT = "fit"
    HOT = "hot"  # slowed down or near it: takes work again once it has cooled
    BUSY_OWNER = "busy_owner"  # someone else computes on it: takes work again once they have gone
    UNHEALTHY = "unhealthy"  # erred: takes work again after a probe container has run on it
    LOST = "lost"  # off the bus, until a reset or reboot


class GpuHealth(Struct, frozen=True):
    """A card's fitness, and what must be remembered to judge it next time. Made only by `runner.gpu.health`.

    Times are on the clock of whoever judges, in seconds. `poison` says what it erred with, until it is proved;
    `standing` is true while that error still shows, so that a probe would prove nothing.
    `slowed_at` and `owner_seen_at`: when the hardware's brake, or a settled foreign process, was last seen;
    `stranger_since`: since when every look has shown a foreign process.
    """

    uuid: str
    status: GpuHealthStatus = GpuHealthStatus.FIT
    why: str = ""
    since: float = 0.0
    fault: str = ""
    fault_persists: bool = False
    ecc_uncorrected: int | None = None
    slowed_at: float | None = None
    foreign_since: float | None = None
    foreign_seen_at: float | None = None

    @property
    def needs_probe(self) -> bool:
        """It erred, shows no error any more, and waits for a probe container."""
        return bool(self.fault) and not self.fault_persists
