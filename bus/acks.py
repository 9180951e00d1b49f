"""What the broker writes into the reply subject of a message that a consumer delivers (ADR-15)."""

from typing import NamedTuple

_DIGITS = 20  # of the largest unsigned 64-bit number


class Handed(NamedTuple):
    """`sequence` in the stream, `step` in the consumer's own count; `pending` more were matching then; `at` in ns."""

    stream: str
    consumer: str
    sequence: int
    step: int
    at: int
    pending: int


def handed(reply: str) -> Handed | None:
    """The parts of `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<tries>.<seq>.<step>.<ns>.<pending>`."""
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[:2] != ["$JS", "ACK"]:
        return None
    stream, consumer, _, *counts = (tokens[2:] if len(tokens) == 9 else tokens[4:])[:7]
    if len(counts) != 4 or not all(count.isascii() and count.isdigit() and len(count) <= _DIGITS for count in counts):
        return None
    sequence, step, at, pending = map(int, counts)
    return Handed(stream, consumer, sequence, step, at, pending)
