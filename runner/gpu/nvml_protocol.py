"""Messages of the NVML child to the runner: JSON lines on its stdout, then an exit code that names the reason."""

import msgspec
from msgspec import Struct

from schemas.gpu import GpuMonitorState, GpuSample, LostGpu, XidEvent


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
EXIT_CODES = {GpuMonitorState.NONE: 40, GpuMonitorState.NO_DRIVER: 41, GpuMonitorState.MISMATCH: 42}
# A GPU was lost a while ago. Only a new process sees that it was reset, and no process may keep it open until then.
EXIT_RENEW = 43
STATE_BY_EXIT_CODE = {code: state for state, code in EXIT_CODES.items()}

LINE_LIMIT_BYTES = 1024 * 1024  # 16 GPUs with hundreds of processes each stay far below it

_decoder: msgspec.json.Decoder[NvmlMessage] = msgspec.json.Decoder(NvmlMessage)


def encode(message: NvmlMessage) -> bytes:
    """Encode a message as one line with its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> NvmlMessage:
    """Decode one line without its newline; raises msgspec.MsgspecError on anything else."""
    return _decoder.decode(line)
