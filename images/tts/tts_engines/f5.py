"""F5-TTS: clones the voice of a recording. It needs a GPU for a useful speed.

Its code is MIT; its published weights are CC-BY-NC-4.0, so their speech is not for commercial use. The image is built
with the weights inside, since jobs have no network (images/tts/README.md).
"""

import os
from pathlib import Path
from typing import Any

import jobkit
from tts_engines.work import Speech

MODELS = Path("/opt/f5")  # as the Dockerfile places them
CHECKPOINT, VOCABULARY, VOCODER = "model.safetensors", "vocab.txt", "vocos"


class F5Engine:
    """Speaks with the loaded model. `model` is an object of `f5_tts.api.F5TTS`."""

    comment = "spoken by F5-TTS (a cloned voice)"
    clones = True

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls) -> "F5Engine":
        """Load the model from the image. Raises JobError if the package or a file is not there."""
        try:
            from f5_tts.api import F5TTS  # noqa: PLC0415
        except ModuleNotFoundError as error:
            advice = "build the image with --build-arg ENGINE=f5"
            raise jobkit.JobError("module_missing", f"{error.name} is not installed for tts: {advice}") from error
        folder = Path(os.environ.get("LAMPLIGHTER_TTS_MODELS", MODELS))
        missing = [name for name in (CHECKPOINT, VOCABULARY, VOCODER) if not (folder / name).exists()]
        if missing:
            raise jobkit.JobError("weights_missing", f"{folder} lacks {', '.join(missing)}: see images/tts/README.md")
        return cls(
            F5TTS(
                ckpt_file=str(folder / CHECKPOINT),
                vocab_file=str(folder / VOCABULARY),
                vocoder_local_path=str(folder / VOCODER),
            )
        )

    def speak(self, speech: Speech, wav: Path) -> None:
        """Write the speech. Raises BadInput without a voice or without the text of its recording."""
        if speech.voice is None:
            raise jobkit.BadInput("voice_missing", "F5-TTS has no voice of its own: send a recording as `voice`")
        if not speech.reference_text.strip():
            raise jobkit.BadInput(
                "reference_text_missing", "F5-TTS has to know what the recording says: send it as `reference_text`"
            )
        self._model.infer(
            ref_file=str(speech.voice),
            ref_text=speech.reference_text,
            gen_text=speech.text,
            speed=speech.speed,
            file_wave=str(wav),
            show_info=print,
        )
