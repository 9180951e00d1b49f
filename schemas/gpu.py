"""Readings of GPUs, the health that is derived from them, and the messages in which the NVML child sends them.

The names follow NVML. If the GPU or its driver does not offer a value, the field is set to None, never to an invented
number. MB are MiB (2**20 bytes), as nvidia-smi prints them.

The child writes JSON lines to its stdout, then ends with an exit code that names the reason.
"""

from enum import IntFlag, StrEnum

import msgspec
from msgspec import Struct


class GpuMonitorState(StrEnum):
    """Whether the GPU monitor can read the GPUs now."""

    OK = "ok"
    NONE = "none"  # no NVML library or no GPU: the host runs jobs without one
    NO_DRIVER = "no_driver"  # there is a library, but no kernel module
    MISMATCH = "mismatch"  # the driver was upgraded under the loaded library
    HUNG = "hung"  # the driver does not answer
    FAILED = "failed"  # the monitor process died


class GpuRecoveryAction(StrEnum):
    """The action that the driver asks for (NVML field 230, driver 565 and newer), in the order of NVML."""

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
    """The reasons for the current clocks (nvml.h, nvmlClocksEventReason*); several may hold at once."""

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
    """Memory rows that were replaced by spares. `pending` needs a reset, `failed` a new GPU."""

    correctable: int = 0
    uncorrectable: int = 0
    pending: bool = False
    failed: bool = False


class GpuProcess(Struct, frozen=True):
    """A process that holds memory of the GPU, by its pid on the host.

    `containers`: the ids of the containers it runs in, outermost first. `ancestors`: its parents, nearest first. Both
    are empty when /proc does not show the process (`seen`): it has just ended, or is outside our pid namespace.
    `graphics`: the process only draws (a desktop, a game).
    """

    pid: int
    used_mb: int | None = None
    containers: tuple[str, ...] = ()
    ancestors: tuple[int, ...] = ()
    seen: bool = True
    graphics: bool = False


class GpuSample(Struct, frozen=True, kw_only=True):
    """One reading of one GPU.

    `memory_used_mb` excludes `memory_reserved_mb`, which the driver keeps for itself. The latter is missing (None) if
    only an older call of NVML exists, which counts it as used. `slowdown_c`: the GPU's own threshold. `ecc_uncorrected`
    counts since the driver was loaded. `utilization`: percent of the time in which a kernel ran. `energy_mj` only grows
    until the driver is reloaded. `compute_capability`: as in `8.9`.
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
    compute_capability: str | None = None


class LostGpu(Struct, frozen=True):
    """A GPU that does not answer. `uuid` is empty when not even that could be read."""

    uuid: str
    why: str
    index: int | None = None
    name: str = ""


class XidEvent(Struct, frozen=True, tag="xid"):
    """An error on one GPU, reported by the driver. `at`: Unix time in seconds; `uuid` empty: unknown GPU."""

    uuid: str
    xid: int
    at: float


class GpuSnapshot(Struct, frozen=True):
    """The latest readings of all GPUs of this host.

    `at`: Unix time of the reading of `samples` in seconds; 0: there was none yet. Unless `state` is ok, the samples are
    old: they may be shown, but work must not be placed by them. `why` says what is wrong and what to do.

    `assigned`: how many GPUs of the machine these are, and why not all; empty: all. `assigned_wrongly`: which assigned
    GPUs the machine does not have.
    """

    state: GpuMonitorState
    at: float = 0.0
    samples: tuple[GpuSample, ...] = ()
    lost: tuple[LostGpu, ...] = ()
    driver: str = ""
    why: str = ""
    assigned: str = ""
    assigned_wrongly: str = ""


class GpuHealthStatus(StrEnum):
    """The health of a GPU. Only a FIT one may take work."""

    FIT = "fit"
    HOT = "hot"  # slowed down by heat, or close to it: takes work again when it is cooler
    BUSY_OWNER = "busy_owner"  # another program computes on it: takes work again when that has ended
    UNHEALTHY = "unhealthy"  # had an error: takes work again after a probe container has passed
    LOST = "lost"  # off the bus, until a reset or reboot


class GpuHealth(Struct, frozen=True):
    """The health of a GPU, and what the next evaluation needs to remember. Only `runner.gpu.health` creates it.

    Times are seconds on the clock of the caller. `fault`: the error of the GPU, until a probe has passed;
    `fault_persists`: the error still shows, so that a probe would prove nothing. `slowed_at` and `foreign_seen_at`:
    when the hardware's brake, or a settled foreign process, was last seen. `foreign_since`: since when every reading
    has shown a foreign process.
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
        """Whether the GPU had an error that does not show any more, and waits for a probe container."""
        return bool(self.fault) and not self.fault_persists


class NvmlReading(Struct, frozen=True, tag="reading"):
    """All GPUs at one moment. It is also the child's heartbeat: a driver that hangs sends none."""

    driver: str
    samples: tuple[GpuSample, ...] = ()
    lost: tuple[LostGpu, ...] = ()


class NvmlEnding(Struct, frozen=True, tag="ending"):
    """The last message before the exit: the error text of NVML."""

    why: str


NvmlMessage = NvmlReading | XidEvent | NvmlEnding

# Exit codes of the child for known errors; any other code is a crash (GpuMonitorState.FAILED).
NVML_EXIT_CODES = {GpuMonitorState.NONE: 40, GpuMonitorState.NO_DRIVER: 41, GpuMonitorState.MISMATCH: 42}
# A GPU was lost a while ago. Only a new process sees that it was reset, and no process may keep it open until then.
NVML_EXIT_RENEW = 43
STATE_BY_NVML_EXIT_CODE = {code: state for state, code in NVML_EXIT_CODES.items()}

NVML_LINE_LIMIT_BYTES = 1024 * 1024  # 16 GPUs with hundreds of processes each stay far below it

_nvml_decoder: msgspec.json.Decoder[NvmlMessage] = msgspec.json.Decoder(NvmlMessage)


def encode_nvml_message(message: NvmlMessage) -> bytes:
    """Encode a message as one line with its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode_nvml_message(line: bytes) -> NvmlMessage:
    """Decode one line without its newline; raises msgspec.MsgspecError on anything else."""
    return _nvml_decoder.decode(line)
