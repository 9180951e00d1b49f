"""The last lines that a job wrote to stderr, for the error of one that failed: few, short, and safe to print."""

from msgspec import Struct

from runner.engines.port import Chunk

LINES = 5
CHARACTERS = 300  # of one line; what is longer keeps its end, where a message is
LOOK_BYTES = 16 * 1024  # of a chunk: a flood must not cost the runner its time


class Tail(Struct, frozen=True):
    """`lines`, oldest first, of the output up to byte `end`."""

    lines: tuple[str, ...] = ()
    end: int = 0

    def after(self, chunk: Chunk) -> "Tail":
        """The tail once `chunk` was read; the same where that was read before, by an earlier life."""
        if chunk.mark.offset <= self.end:
            return self
        if chunk.stream != "stderr":
            return Tail(self.lines, chunk.mark.offset)
        last = [line for line in chunk.data[-LOOK_BYTES:].split(b"\n") if line.strip()][-LINES:]
        return Tail((*self.lines, *map(_printable, last))[-LINES:], chunk.mark.offset)


def _printable(line: bytes) -> str:
    """Without anything that a terminal would obey: control characters, and those that turn the direction of a text."""
    text = line[-4 * CHARACTERS :].decode(errors="replace").rstrip("\r").expandtabs(4)
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return shown if len(shown) <= CHARACTERS else f"…{shown[1 - CHARACTERS :]}"
