"""What the NVML child says to the runner: JSON lines on its stdout, then an exit code that tells why it ended."""

import msgspec
from msgspec import Struct

from schemas.gpu import GpuSample, LostGpu, WatchState, XidEvent


class Reading(Struct, frozen=True, tag="reading"):
    """All cards at one moment. It is the heartbeat too: a driver that hangs sends none."""

    driver: str
    samples: tuple[GpuSample, ...] = ()
    lost: tuple[LostGpu, ...] = ()


class Ending(Struct, frozen=True, tag="ending"):
    """The last line before the exit code: NVML's own words."""

    why: str


Message = Reading | XidEvent | Ending

# Exit codes of the child for the endings it can name; any other code is a crash (WatchState.FAILED).
EXITS = {WatchState.NONE: 40, WatchState.NO_DRIVER: 41, WatchState.MISMATCH: 42}
# A card was lost a while ago: only a new process can see that it was reset, and none may hold it open meanwhile.
RENEW = 43
ENDINGS = {code: state for state, code in EXITS.items()}

LINE_BYTES = 1024 * 1024  # the longest line: 16 cards with hundreds of processes each stay far below it

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """One line, with its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """One line without its newline; raises msgspec.MsgspecError on anything else."""
    return _decoder.decode(line)
