"""The border to FFmpeg: opening a client's file safely, and its errors in the contract's words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.container

import jobkit

# Demuxers for single files. Playlists and concat lists are left out: they would read other files of the machine.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,flv,asf,mpeg,mpegts,ogg,wav,w64,mp3,aac,flac,aiff,amr,caf,"
    "gif,image2,jpeg_pipe,png_pipe,webp_pipe"
)
_OURS = (MemoryError, PermissionError)  # FFmpeg reports these too, and they are not the file's fault


@contextmanager
def opened(path: Path, code: str) -> Iterator[av.container.InputContainer]:
    """The file, open for reading; whatever FFmpeg finds wrong with it becomes `BadInput(code)`."""
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
