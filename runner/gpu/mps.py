"""MPS, NVIDIA's Multi-Process Service: whether its control daemon runs, and what a job with a share gets of it.

Without MPS the driver gives each process on a GPU all of it in turns, and a share bounds only how many jobs there are.
With MPS a job's kernels run beside those of others, on at most its share of the GPU's multiprocessors.

The names are those of NVIDIA's MPS documentation. Nothing here has run on a GPU yet (docs/gpu.md).
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct

from runner.engines.port import MpsClient
from runner.gpu.process_owner import ProcReader, read_proc

PID_FILE = "nvidia-cuda-mps-control.pid"  # in the pipe directory
DAEMON_NAME = "nvidia-cuda-mps"  # the first 15 characters, which is all that /proc/PID/comm has


class MpsSettings(Struct, frozen=True):
    """The `[gpu.mps]` section: MPS for jobs that have a share of a GPU."""

    use: Literal["auto", "on", "off"] = "auto"
    """`auto`: use MPS if its control daemon runs. `on`: use it without this check, which needs the host's pids."""
    pipe_dir: Path = Path("/tmp/nvidia-mps")  # noqa: S108 - the daemon's own default
    """The pipe directory of the control daemon (CUDA_MPS_PIPE_DIRECTORY)."""


def find_control_daemon(settings: MpsSettings, proc: ProcReader = read_proc) -> int | None:
    """Return the pid of the control daemon that serves the pipe directory; None if none runs. Blocking, but short."""
    if settings.use == "off":
        return None
    try:
        pid = int((settings.pipe_dir / PID_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if (proc(pid, "comm") or "").startswith(DAEMON_NAME) else None


def is_memory_shared(settings: MpsSettings) -> bool:
    """Return whether jobs may get all of /dev/shm, by which CUDA talks to the MPS server. Blocking, but short."""
    return settings.use == "on" or find_control_daemon(settings) is not None


def mps_client(settings: MpsSettings, share: float, *, daemon_pid: int | None) -> MpsClient | None:
    """Return what a container with this share gets of MPS; None for a whole GPU, and where MPS is not used."""
    if share >= 1 or not (settings.use == "on" or daemon_pid is not None):
        return None
    return MpsClient(str(settings.pipe_dir.absolute()), max(1, int(share * 100 + 1e-6)))
