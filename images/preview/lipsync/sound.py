"""Read the client's speech: as samples for the net, and resampled for the result."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.audio.stream
import av.container
import torch

import jobkit

from .features import RATE
from .media import opened

OUT_RATE = 48_000
_CODE = "unreadable_audio"


def samples(path: Path, longest_s: float) -> Iterator[torch.Tensor]:
    """Yield the recording in blocks, mono at RATE, -1..1. Raises BadInput (unreadable_audio, input_too_large)."""
    room = longest_s * RATE
    with _open(path) as (file, stream):
        for frame in _resampled(file, stream, av.AudioResampler("flt", "mono", RATE)):
            room -= frame.samples
            if room < 0:
                raise jobkit.BadInput(
                    "input_too_large", f"the recording is longer than {longest_s / 3600:.0f} h; cut it"
                )
            yield torch.from_numpy(frame.to_ndarray()[0])


def frames(path: Path, layout: str, size: int) -> Iterator[av.AudioFrame]:
    """Yield the recording for the result: planar float at OUT_RATE, `size` samples a frame (fewer in the last)."""
    with _open(path) as (file, stream):
        yield from _resampled(file, stream, av.AudioResampler("fltp", layout, OUT_RATE, frame_size=size))


def layout(path: Path) -> str:
    """Return `mono`, or `stereo` for a recording with more than one channel."""
    with _open(path) as (_, stream):
        return "mono" if stream.codec_context.channels == 1 else "stereo"


def _resampled(
    file: av.container.InputContainer, stream: av.audio.stream.AudioStream, resampler: av.AudioResampler
) -> Iterator[av.AudioFrame]:
    for frame in file.decode(stream):
        frame.pts = None  # otherwise gaps in the timestamps would be filled with silence, and the lips be late
        yield from resampler.resample(frame)
    yield from resampler.resample(None)


@contextmanager
def _open(path: Path) -> Iterator[tuple[av.container.InputContainer, av.audio.stream.AudioStream]]:
    with opened(path, _CODE) as file:
        if not file.streams.audio:
            raise jobkit.BadInput(_CODE, f"{path.name} holds no sound; send a recording")
        yield file, file.streams.audio[0]
