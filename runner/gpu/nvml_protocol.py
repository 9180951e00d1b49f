"""What the NVML child says to the runner: JSON lines on its stdout, then an exit code that tells why it ended."""

import msgspec
from msgspec import Struct

from schemas.gpu import GpuMonitorState, GpuSample, LostGpu, XidEvent


class NvmlReading(Struct, frozen=True, tag="reading"):
    """All cards at one moment. It is the heartbeat too: a driver that hangs sends none."""

    driver: str
    samples: tuple[GpuSample, ...] = ()
    lost: tuple[LostGpu, ...] = ()


class NvmlEnding(Struct, frozen=True, tag="ending"):
    """The last line before the exit code: NVML's own words."""

    why: str


NvmlMessage = NvmlReading | XidEvent | NvmlEnding

# Exit codes of the child for the endings it can name; any other code is a crash (WatchState.FAILED).
EXIT_CODES = {GpuMonitorState.NONE: 40, GpuMonitorState.NO_DRIVER: 41, GpuMonitorState.MISMATCH: 42}
# A card was lost a while ago: only a new process can see that it was reset, and none may hold it open meanwhile.
EXIT_RENEW = 43
STATE_BY_EXIT_CODE = {code: state for state, code in EXIT_CODES.items()}

LINE_LIMIT_BYTES = 1024 * 1024  # the longest line: 16 cards with hundreds of processes each stay far below it

_decoder: msgspec.json.Decoder[NvmlMessage] = msgspec.json.Decoder(NvmlMessage)


def encode(message: NvmlMessage) -> bytes:
    """One line, with its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> NvmlMessage:
    """One line without its newline; raises msgspec.MsgspecError on anything else."""
    return _decoder.decode(line)
