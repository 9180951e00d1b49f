"""Write the result: H.264 and AAC in one mp4, with sound and pictures interleaved as they are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.audio.stream
import av.container
import av.video.stream
import numpy as np

from . import sound
from .picture import Bytes, Shape

COMMENT = "preview engine (not HeyGem)"
_AAC_FRAME = 1024


@dataclass(frozen=True)
class Coding:
    """Frames per second, x264's constant rate factor (lower: better quality, larger file), and its speed preset."""

    fps: Fraction
    crf: int
    preset: str


class VideoWriter:
    """Takes the pictures in order, and adds the sound of the same time after each."""

    def __init__(self, file: av.container.OutputContainer, shape: Shape, coding: Coding, speech: Path) -> None:
        self._file = file
        self._fps = coding.fps
        self._video = _video_stream(file, shape, coding)
        layout = sound.layout(speech)
        self._audio = file.add_stream("aac", rate=sound.OUT_RATE, layout=layout)
        self._speech = sound.frames(speech, layout, _AAC_FRAME)
        self._pictures = self._samples = 0

    def add(self, luma: Bytes, chroma: Bytes) -> None:
        """Encode the next picture: luma H, W; chroma 2, H/2, W/2."""
        height, width = luma.shape
        joined = np.concatenate([luma.reshape(-1), chroma.reshape(-1)]).reshape(height * 3 // 2, width)
        frame = av.VideoFrame.from_ndarray(joined, format="yuv420p")
        frame.pts, frame.time_base = self._pictures, 1 / self._fps
        self._file.mux(self._video.encode(frame))
        self._pictures += 1
        self._add_sound(float(self._pictures / self._fps))

    def _add_sound(self, until_s: float) -> None:
        while self._samples / sound.OUT_RATE < until_s:
            frame = next(self._speech, None)
            if frame is None:
                return
            self._samples += frame.samples
            self._file.mux(self._audio.encode(frame))

    def finish(self) -> None:
        self._add_sound(float("inf"))
        for stream in (self._video, self._audio):
            self._file.mux(stream.encode(None))


@contextmanager
def create_video(path: Path, shape: Shape, coding: Coding, speech: Path) -> Iterator[VideoWriter]:
    """Yield a writer of an mp4 that can be played while it loads. The file is finished if the block succeeds."""
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as file:
        file.metadata["comment"] = COMMENT
        writer = VideoWriter(file, shape, coding, speech)
        yield writer
        writer.finish()


def _video_stream(file: av.container.OutputContainer, shape: Shape, coding: Coding) -> av.video.stream.VideoStream:
    stream = file.add_stream("libx264", rate=coding.fps, options={"crf": str(coding.crf), "preset": coding.preset})
    stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
    context = stream.codec_context
    context.sample_aspect_ratio = shape.pixel_aspect
    context.colorspace, context.color_primaries, context.color_trc = shape.matrix, shape.primaries, shape.transfer
    context.color_range = 1
    return stream
