"""Small real media, made when needed: a moving picture, a tone, and both together as HeyGem would give them back."""

import math
import wave
from pathlib import Path

import av
import numpy as np

FPS, SIDE, RATE = 25, 64, 16_000


def write_speech(path: Path, seconds: float = 2.0, rate: int = RATE) -> Path:
    """A wav with a tone."""
    samples = (8_000 * np.sin(np.arange(round(seconds * rate)) * 2 * math.pi * 440 / rate)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def write_video(
    path: Path, seconds: float = 2.0, codec: str = "libx264", sound: bool = False, side: int = SIDE
) -> Path:
    """A moving picture at 25 frames a second, with a tone as long as itself if asked for."""
    with av.open(str(path), "w") as file:
        picture = file.add_stream(codec, rate=FPS)
        picture.width, picture.height, picture.pix_fmt = side, side, "yuv420p"
        tone = file.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for number in range(round(seconds * FPS)):
            image = np.full((side, side, 3), number * 3 % 255, np.uint8)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(image)))
        file.mux(picture.encode(None))
        if tone is not None:
            for start in range(0, round(seconds * RATE), 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                frame.sample_rate, frame.pts = RATE, start
                file.mux(tone.encode(frame))
            file.mux(tone.encode(None))
    return path
