"""Draw the operator's label into the picture with ffmpeg's filter drawtext. Off unless HEYGEM_LABEL is set.

Many jurisdictions require a label on generated pictures of people. The vendor's own marks, `watermark` and
`digital_auth`, are pictures that its image may lack. The vendor reads their paths from its config.ini and ignores the
exit code of its ffmpeg. So a job that asks for a mark whose picture is missing would end without a video, after all
the work: `check_vendor_marks` refuses it first.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from heygem_worker import ffmpeg, private_folder
from heygem_worker.media_info import MediaProgress, MediaUnreadable
from heygem_worker.settings import WorkerSettings
from jobkit import BadInput, JobError

# Relative to the working folder, which belongs to the job: an absolute path in a filter would need escaping twice.
TEXT, FONT = "label.txt", "label.font"
TRIAL_COMMAND = ("ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", "color=size=320x180:duration=0.1", "-vf")
TRIAL_TIMEOUT_S = 60.0
FONTS = ("/usr/share/fonts", "/usr/local/share/fonts")
LOOK = "fontsize=h/28:fontcolor=white:box=1:boxcolor=black@0.5:boxborderw=6:x=w-tw-h/40:y=h-th-h/40"

VENDOR_MARKS = {  # the job's switch -> section and key of config.ini
    "watermark": ("watermark", "watermark_path"),
    "digital_auth": ("digital_human_authentication", "digital_auth_path"),
}


def check(settings: WorkerSettings) -> None:
    """Write the label's files to the working folder and test them. Raises JobError if the label cannot be drawn."""
    if not settings.label:
        return
    if shutil.which("ffmpeg") is None:
        raise _label_error("there is no ffmpeg in this image: add one")
    if settings.label_font and not Path(settings.label_font).is_file():  # ffmpeg would take another font
        raise _label_error(f"HEYGEM_LABEL_FONT={settings.label_font!r} is not a file: name a font file")
    Path(TEXT).write_text(settings.label, encoding="utf-8")
    said = ""
    for font in [settings.label_font] if settings.label_font else _fonts():
        Path(FONT).unlink(missing_ok=True)
        if font:
            Path(FONT).symlink_to(font)
        if not (said := _try_label()):
            return
    raise _label_error(f"ffmpeg says: {said}: name a font file in HEYGEM_LABEL_FONT, or use an ffmpeg with drawtext")


def burn(video: Path, target: Path, seconds: float, tell: MediaProgress) -> None:
    """Write `video` with the label to `target`; copy its sound. Raises JobError."""
    try:
        ffmpeg.encode(video, target, seconds + 1.0, tell, "-vf", _filter(), *ffmpeg.H264, "-c:a", "copy")
    except MediaUnreadable as error:
        raise JobError("internal", f"the label could not be drawn: {error}: see HEYGEM_LABEL in README.md") from error


def _label_error(why: str) -> JobError:
    return JobError("model_load_failed", f"HEYGEM_LABEL is set and cannot be drawn: {why}, or leave HEYGEM_LABEL out")


def _filter() -> str:
    font = f"fontfile={FONT}:" if Path(FONT).is_symlink() else ""
    return f"drawtext=textfile={TEXT}:{font}expansion=none:{LOOK}"


def _try_label() -> str:
    """Draw the label into a small empty picture. Return the error, or an empty text."""
    try:
        done = subprocess.run(
            [*TRIAL_COMMAND, _filter(), "-f", "null", "-"], capture_output=True, timeout=TRIAL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip()[-ffmpeg.TAIL :]
    return (said or f"it ended with {done.returncode}") if done.returncode else ""


def _fonts() -> Iterator[str]:
    """Yield fonts to try: fontconfig's choice (an empty name), then fonts on the disk, then matplotlib's."""
    yield ""
    for folder in FONTS:
        yield from (str(path) for path in sorted(Path(folder).rglob("*.ttf"))[:1])
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        yield str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


def find_vendor_mark(switch: str, place: private_folder.WorkFolders) -> Path | None:
    """Return the picture of the mark `switch`; None if it is not configured or does not exist."""
    path = private_folder.read_config(place).get(*VENDOR_MARKS[switch], fallback="")
    found = place.root / path
    return found if path and found.is_file() else None


def check_vendor_marks(switches: Mapping[str, int], place: private_folder.WorkFolders) -> None:
    """Raise BadInput if the job asks for a mark whose picture this installation does not have."""
    for switch, (section, key) in VENDOR_MARKS.items():
        if switches[switch] and find_vendor_mark(switch, place) is None:
            where = f"[{section}] {key} in HeyGem's config.ini names no file that exists"
            raise BadInput("bad_input", f"{switch} is not available: {where}: leave it out, or see README.md, Labels")
