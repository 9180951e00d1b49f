"""Inputs for the fuzz targets: valid examples with random changes, and random bytes."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

CHANGES_LIMIT = 6
SLICE_LIMIT_BYTES = 400

# Bytes that parsers treat in a special way: separators, terminators, numbers at limits, broken UTF-8.
SPECIAL = (
    b"",
    b"\0",
    b"\r\n",
    b"\n",
    b'"',
    b"\\",
    b"\\ud800",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b"null",
    b"true",
    b",",
    b";",
    b".",
    b" ",
    b"*",
    b">",
)


def fuzzing(examples: int, **more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the decorator of a check that runs on `examples` inputs and shrinks one that breaks it."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        **more,
    )


@st.composite
def mutate(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return a seed in which up to MOST_CHANGES slices are replaced, removed or repeated, or bytes of no seed."""
    data = draw(st.sampled_from(seeds) | st.binary(max_size=SLICE_LIMIT_BYTES))
    pieces = st.sampled_from((*SPECIAL, *words, *seeds)) | st.binary(max_size=8)
    for _ in range(draw(st.integers(0, CHANGES_LIMIT))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 16)))
        piece = draw(pieces | st.just(data[start:stop] * 2))
        data = data[:start] + piece + data[stop:]
    return data
