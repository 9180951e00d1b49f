"""Makes the awkward files that clients send, out of a plain one or of nothing."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_wav(path: Path, seconds: float, samples: np.ndarray | None = None, rate: int = 16_000) -> Path:
    """A mono wav of these samples (-1..1), or of digital silence."""
    given = np.zeros(int(seconds * rate)) if samples is None else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((given * 32767).astype("<i2").tobytes())
    return path


def write_numbered_video(path: Path, times: list[float], size: tuple[int, int] = (64, 48), gop: int = 5) -> Path:
    """A video whose frame i, shown from times[i] seconds on, is a grey of level 16 + 4 i."""
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=1000, options={"crf": "1", "g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, when in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((3, size[1], size[0]), 128, np.uint8), format="yuv444p")
            np.frombuffer(memoryview(frame.planes[0]), np.uint8)[:] = 16 + 4 * i
            frame.pts, frame.time_base = round(when * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_video(path: Path, rate: Fraction, frames: int) -> Path:
    """A small grey video at a constant rate."""
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 128, np.uint8), format="yuv420p")
            frame.pts, frame.time_base = index, 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_resized_video(source: Path, path: Path, width: int, height: int) -> Path:
    """The same clip in another size, with its index at the front as on the web."""
    with av.open(source) as given, av.open(path, "w", options={"movflags": "+faststart"}) as file:
        video = given.streams.video[0]
        stream = file.add_stream("libx264", rate=video.average_rate, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in given.decode(video):
            file.mux(stream.encode(frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")))
        file.mux(stream.encode(None))
    return path
