"""What the broker writes into the reply subject of a message that a consumer delivers (ADR-15)."""

from typing import NamedTuple


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
    stream, consumer, _, sequence, step, at, pending = (tokens[2:] if len(tokens) == 9 else tokens[4:])[:7]
    return Handed(stream, consumer, int(sequence), int(step), int(at), int(pending))
