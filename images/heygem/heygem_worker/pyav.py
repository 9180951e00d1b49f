"""Read and rewrite media with the package PyAV, if ffmpeg or ffprobe is missing. A video's rotation is ignored."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from heygem_worker.media_info import CRF, WAV_RATE, MediaInfo, MediaProgress, MediaUnreadable, VideoInfo, can_copy_video

MICRO = 1_000_000  # PyAV gives the duration of a file in microseconds


class PyavTools:
    """MediaTools with PyAV. It decodes and encodes every video, even one that could be copied."""

    def probe(self, path: Path) -> MediaInfo:
        with _open(path) as (av, file):
            whole = (file.duration or 0) / MICRO
            picture = next((stream for stream in file.streams.video), None)
            sound = next((stream for stream in file.streams.audio), None)
            found = _picture(av, picture, whole) if picture else None
            return MediaInfo(found, _seconds(sound, whole) if sound else None)

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: MediaProgress) -> None:
        with _open(source) as (av, file), av.open(str(target), "w", format="wav") as out:
            stream = out.add_stream("pcm_s16le", rate=WAV_RATE)
            stream.layout = "mono"
            resampler = av.AudioResampler(format="s16", layout="mono", rate=WAV_RATE)
            for frame in _until(limit_s, _decoded(file, file.streams.audio, "sound"), tell):
                for piece in resampler.resample(frame):
                    out.mux(stream.encode(piece))
            out.mux(stream.encode(None))

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: MediaProgress) -> None:
        with _open(source) as (av, file), av.open(str(target), "w", format="mp4") as out:
            shown = _decoded(file, file.streams.video, "picture")
            size = file.streams.video[0].codec_context
            rate = Fraction(fps or file.streams.video[0].average_rate)
            stream = out.add_stream("libx264", rate=rate, options={"crf": str(CRF)})
            stream.width, stream.height, stream.pix_fmt = size.width // 2 * 2, size.height // 2 * 2, "yuv420p"
            for number, frame in _evenly(_until(limit_s, shown, tell), rate):
                picture = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
                picture.pts, picture.time_base = number, 1 / rate
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the package `av` and the file, open for reading. FFmpeg's errors become MediaUnreadable."""
    av = importlib.import_module("av")
    try:
        with av.open(str(path)) as file:
            yield av, file
    except av.FFmpegError as error:
        raise MediaUnreadable(str(error)) from error


def _picture(av: Any, stream: Any, whole: float) -> VideoInfo:
    rates = (stream.average_rate or Fraction(0), stream.base_rate or Fraction(0))
    context = stream.codec_context
    plain = can_copy_video(context.name, context.pix_fmt or "", rates, 0)
    return VideoInfo(_seconds(stream, whole), rates[0] or rates[1], context.width, context.height, plain)


def _seconds(stream: Any, whole: float) -> float:
    return float(stream.duration * stream.time_base) if stream.duration else whole


def _decoded(file: Any, streams: Any, what: str) -> Iterator[Any]:
    if not streams:
        raise MediaUnreadable(f"there is no {what} in it")
    decoded: Iterator[Any] = file.decode(streams[0])
    return decoded


def _until(limit_s: float, frames: Iterator[Any], tell: MediaProgress) -> Iterator[Any]:
    for frame in frames:
        at = frame.time or 0.0
        if at >= limit_s:
            return
        tell(at)
        yield frame


def _evenly(frames: Iterator[Any], rate: Fraction) -> Iterator[tuple[int, Any]]:
    """Yield numbered frames at a constant rate: repeat a frame to fill a gap, drop one whose number was yielded."""
    number = 0
    for frame in frames:
        due = round((frame.time or 0.0) * rate)
        while number <= due:
            yield number, frame
            number += 1
