"""Read and rewrite media with the programs ffmpeg and ffprobe, without a shell."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from heygem_worker.media_info import CRF, WAV_RATE, MediaInfo, MediaProgress, MediaUnreadable, VideoInfo, can_copy_video
from jobkit import JobError

PROBE = ("ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", "-i")
ENCODE = ("ffmpeg", "-nostdin", "-y", "-v", "error", "-progress", "pipe:1", "-protocol_whitelist", "file", "-i")
PROBE_TIMEOUT_S = 60.0
TAIL = 400  # characters of ffmpeg's output that are shown to the user
H264 = ("-c:v", "libx264", "-crf", str(CRF), "-preset", "veryfast", "-pix_fmt", "yuv420p")


class FfmpegTools:
    """MediaTools with ffmpeg and ffprobe."""

    def probe(self, path: Path) -> MediaInfo:
        try:
            done = subprocess.run([*PROBE, str(path)], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
            found = json.loads(done.stdout or b"{}")
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise MediaUnreadable(f"ffprobe cannot read it: {error}") from error
        if done.returncode != 0:
            raise MediaUnreadable(done.stderr.decode(errors="replace").strip()[-TAIL:])
        whole = found.get("format", {}).get("duration")
        streams = {stream["codec_type"]: stream for stream in reversed(found.get("streams", [])) if _is_track(stream)}
        sound = streams.get("audio")
        return MediaInfo(_picture(streams.get("video"), whole), _seconds(sound, whole) if sound else None)

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: MediaProgress) -> None:
        encode(source, target, limit_s, tell, "-vn", "-ac", "1", "-ar", str(WAV_RATE), "-c:a", "pcm_s16le")

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: MediaProgress) -> None:
        anew = (*H264, "-r", str(fps))
        even = ("-vf", "scale=trunc(iw/2)*2:trunc(ih/2)*2")  # yuv420p has no odd sizes
        encode(source, target, limit_s, tell, "-an", "-map", "0:v:0", *((*anew, *even) if fps else ("-c:v", "copy")))


def encode(source: Path, target: Path, limit_s: float, tell: MediaProgress, *how: str) -> None:
    """Run ffmpeg with the arguments `how` on the first `limit_s` seconds. Raises MediaUnreadable and JobError."""
    argv = [*ENCODE, str(source), "-t", f"{limit_s:.3f}", *how, str(target)]
    with tempfile.TemporaryFile() as said, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said) as process:
        try:
            for line in process.stdout or ():
                name, _, value = line.decode(errors="replace").strip().partition("=")
                if name == "out_time_us" and value.isdigit():
                    tell(int(value) / 1e6)
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        said.seek(0)
        if code < 0:  # killed, most likely for lack of memory: not the file's fault
            raise JobError("internal", f"ffmpeg was ended by signal {-code}: raise memory_mb")
        if code != 0:
            raise MediaUnreadable(said.read().decode(errors="replace").strip()[-TAIL:] or f"ffmpeg ended with {code}")


def _is_track(stream: Mapping[str, Any]) -> bool:
    return stream.get("codec_type") in {"video", "audio"} and not stream.get("disposition", {}).get("attached_pic")


def _picture(stream: Mapping[str, Any] | None, whole: str | None) -> VideoInfo | None:
    if stream is None:
        return None
    average, lowest = _rate(stream.get("avg_frame_rate")), _rate(stream.get("r_frame_rate"))
    plain = can_copy_video(
        stream.get("codec_name", ""), stream.get("pix_fmt", ""), (average, lowest), _is_rotated(stream)
    )
    return VideoInfo(_seconds(stream, whole), average or lowest, stream["width"], stream["height"], plain)


def _seconds(stream: Mapping[str, Any], whole: str | None) -> float:
    """Return the duration of the stream, or of the whole file if the stream has none (Matroska)."""
    return float(stream.get("duration") or whole or 0.0)


def _rate(text: str | None) -> Fraction:
    over, _, under = (text or "0/1").partition("/")
    return Fraction(int(over), int(under)) if int(under or 1) else Fraction(0)


def _is_rotated(stream: Mapping[str, Any]) -> float:
    told = [side.get("rotation", 0) for side in stream.get("side_data_list", [])]
    return float(next(filter(None, told), 0) or stream.get("tags", {}).get("rotate", 0))
