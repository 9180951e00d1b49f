"""Read the client's video as pictures at a constant rate, from any point on, with few of them in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.video.stream

import jobkit

from .media import opened
from .picture import Picture, Shape

_CODE = "unreadable_video"
_WHOLE, _SLACK_S = 0.9, 0.5  # a file is cut off if it ends before this share of its announced length, less the slack

_EARLY = 0.25  # of a picture's time; without it, files with millisecond timestamps would repeat frames and skip others

_HELD_BYTES = 256 << 20  # decoded pictures held in memory while running backward: files decode forward only
_DEEPEST = 6  # bytes per pixel of the largest format that a decoder returns (16 bit 4:4:4)

_PICTURE_FPS = Fraction(25)  # of a single picture, and of a video that names no rate or one below _SLOWEST_FPS
_SLOWEST_FPS, _FASTEST_FPS = 10, 60  # as in endpoint.toml

Frames = Iterator[av.VideoFrame]
File = av.container.InputContainer
Stream = av.video.stream.VideoStream


class Clip:
    """A video read at `fps`. Picture k is the frame shown k / fps seconds after the first frame."""

    def __init__(self, path: Path, fps: int | None, max_side: int) -> None:
        """Decode the first frame to learn the shape. Without `fps`, the video's own rate is used.

        Raises BadInput (unreadable_video, input_too_large).
        """
        self._path = path
        with self._open() as (file, stream):
            first = next(file.decode(stream), None)
            if first is None:
                raise jobkit.BadInput(_CODE, f"{path.name} holds no frame that can be decoded; send another file")
            self.shape = Shape.of(first, stream.codec_context.sample_aspect_ratio, max_side)
            self.source_pixels = first.width * first.height
            self._start = _time(first, 0.0)
            self.fps = Fraction(fps) if fps else _own_rate(stream)

    def pictures(self, first: int, stop: int) -> Iterator[Picture]:
        """Yield the pictures first..stop-1, fewer if the clip ends earlier. Raises BadInput if the file is cut off."""
        index = first
        with self._open() as (file, stream):
            for frame, until in self._shown(self._from(file, stream, float(first / self.fps))):
                while index < stop and (index + _EARLY) / self.fps < until:
                    yield Picture(frame, self.shape)
                    index += 1
                if index >= stop:
                    return
            self._complete(float(index / self.fps), file, stream)

    def _shown(self, frames: Frames) -> Iterator[tuple[av.VideoFrame, float]]:
        """Yield each frame with the time, in seconds from the clip's first frame, at which the next replaces it."""
        last, since, length = None, 0.0, float(1 / self.fps)
        for frame in frames:
            now = _time(frame, self._start + since + length) - self._start
            if last is None:
                last, since = frame, now
            elif now > since:  # otherwise the timestamps are broken, and the newer frame replaces the older one
                yield last, now
                last, since, length = frame, now, now - since
            else:
                last = frame
        if last is not None:
            yield last, since + length

    def _from(self, file: File, stream: Stream, wanted_s: float) -> Frames:
        """Yield frames from `wanted_s` or a little earlier on; from the first frame if the file cannot seek."""
        target = self._start + wanted_s
        if wanted_s > 0:
            landed = _sought(file, stream, target)
            if landed is not None:
                yield landed
                yield from file.decode(stream)
                return
            with self._open() as (again, same):
                yield from again.decode(same)
                return
        yield from file.decode(stream)

    def _complete(self, ended_s: float, file: File, stream: Stream) -> None:
        told = [float(stream.duration * stream.time_base)] if stream.duration and stream.time_base else []
        told += [file.duration / av.time_base] if file.duration else []
        if told and ended_s < _WHOLE * min(told) - _SLACK_S:
            name, announced = self._path.name, min(told)
            raise jobkit.BadInput(
                _CODE, f"{name} is cut off: {ended_s:.1f} s of {announced:.1f} s; send the whole file"
            )

    @contextmanager
    def _open(self) -> Iterator[tuple[File, Stream]]:
        with opened(self._path, _CODE) as file:
            if not file.streams.video:
                raise jobkit.BadInput(_CODE, f"{self._path.name} holds no picture; send a video")
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            yield file, stream


def _own_rate(stream: Stream) -> Fraction:
    """Return the rate of the video, halved until it is at most 60 frames per second. Phones name 29.87 and the like."""
    rate = stream.average_rate or stream.guessed_rate or _PICTURE_FPS
    while rate > _FASTEST_FPS:
        rate /= 2
    return rate.limit_denominator(1001) if rate >= _SLOWEST_FPS else _PICTURE_FPS


def _sought(file: File, stream: Stream, target_s: float) -> av.VideoFrame | None:
    """Seek, and return the frame found; None if it is later than `target_s` or the file cannot seek."""
    if stream.time_base is None:
        return None
    try:
        file.seek(int(target_s / stream.time_base), stream=stream)
        landed = next(file.decode(stream), None)
    except av.error.FFmpegError:
        return None
    if landed is None or landed.pts is None or _time(landed, 0.0) > target_s + 1e-6:
        return None
    return landed


def _time(frame: av.VideoFrame, otherwise: float) -> float:
    """Return the frame's time on the stream's clock in seconds; `otherwise` if the file has no timestamp for it."""
    if frame.pts is None or frame.time_base is None:
        return otherwise
    return float(frame.pts * frame.time_base)


def back_and_forth(clip: Clip, length: int, total: int) -> Iterator[tuple[int, Picture]]:
    """Yield `total` pictures with their indices in the clip, which has `length` pictures.

    A clip shorter than the speech runs forward, then backward, so that nothing jumps.

    Raises BadInput if the clip yields no picture when it is read again.
    """
    given = 0
    while given < total:
        before = given
        for place, picture in _round_trip(clip, length):
            yield place, picture
            given += 1
            if given == total:
                return
        if given == before:
            raise jobkit.BadInput("unreadable_video", "the video reads differently the second time; send another file")


def _round_trip(clip: Clip, length: int) -> Iterator[tuple[int, Picture]]:
    """Yield the pictures forward, then backward. The turning points are not repeated."""
    yield from enumerate(clip.pictures(0, length))
    held = max(1, _HELD_BYTES // (clip.source_pixels * _DEEPEST))
    for stop in range(length - 1, 1, -held):
        start = max(1, stop - held)
        yield from reversed(list(enumerate(clip.pictures(start, stop), start)))
