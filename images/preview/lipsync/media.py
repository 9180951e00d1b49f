"""Open a client's file with FFmpeg safely, and map FFmpeg's errors to those of the container contract."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.container

import jobkit

# Demuxers for single files. Playlists and concat lists are not allowed: they would read other files of the machine.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,flv,asf,mpeg,mpegts,ogg,wav,w64,mp3,aac,flac,aiff,amr,caf,"
    "gif,image2,jpeg_pipe,png_pipe,webp_pipe"
)
_OURS = (MemoryError, PermissionError)  # FFmpeg raises these too, but the file is not at fault


@contextmanager
def opened(path: Path, code: str) -> Iterator[av.container.InputContainer]:
    """Yield the file, open for reading. FFmpeg's errors about its content become `BadInput(code)`."""
    with readable(path, code), av.open(path, options={"format_whitelist": _FORMATS}, metadata_errors="replace") as file:
        yield file


@contextmanager
def readable(path: Path, code: str) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, _OURS):
            raise
        raise jobkit.BadInput(code, f"{path.name} cannot be read ({error.strerror}); send another file") from error
