"""espeak-ng: a small engine with voices of its own, for every machine. It does not clone a voice, and says so.

Licence: GPL-3.0-or-later, called as a program.
"""

import shutil
import subprocess
import wave
from pathlib import Path

import jobkit
from tts_engines.work import Speech

WORDS_PER_MINUTE = 165  # a little slower than the 175 that the program takes without -s
VOICES = {"zh": "cmn"}  # Mandarin; other languages have the name that the input uses


class EspeakEngine:
    """Speaks with the program `espeak-ng`."""

    comment = "spoken by espeak-ng (a synthetic voice, not the given one)"
    clones = False

    def __init__(self, program: str) -> None:
        self._program = program

    @classmethod
    def load(cls) -> "EspeakEngine":
        """Find the program. Raises JobError if it is not installed."""
        program = shutil.which("espeak-ng")
        if program is None:
            advice = "install Debian's package espeak-ng on that host, or use the tts image"
            raise jobkit.JobError("module_missing", f"espeak-ng is not installed for tts: {advice}")
        return cls(program)

    def speak(self, speech: Speech, wav: Path) -> None:
        """Write the speech. Raises BadInput for a language that the program does not have."""
        voice = VOICES.get(speech.language, speech.language)
        argv = [
            self._program,
            "-v",
            voice,
            "-s",
            str(round(WORDS_PER_MINUTE * speech.speed)),
            "-w",
            str(wav),
            "--stdin",
        ]
        done = subprocess.run(argv, input=speech.text.encode(), capture_output=True, check=False)
        if done.returncode or not _has_sound(wav):
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise jobkit.BadInput("language_unknown", f"espeak-ng cannot speak {speech.language}: {said[-1]}")


def _has_sound(wav: Path) -> bool:
    try:
        with wave.open(str(wav), "rb") as file:
            return file.getnframes() > 0
    except (OSError, EOFError, wave.Error):
        return False
