"""The image's program: speak one text and exit. LAMPLIGHTER_TTS_ENGINE names the engine: espeak (default) or f5."""

import os
from typing import Any

import jobkit

ENGINES = ("espeak", "f5")


def load() -> Any:
    """Load the engine that the image was built with. Raises JobError if it is not installed."""
    name = os.environ.get("LAMPLIGHTER_TTS_ENGINE", ENGINES[0])
    if name == "f5":
        from tts_engines.f5 import F5Engine  # noqa: PLC0415

        return F5Engine.load()
    if name == "espeak":
        from tts_engines.espeak import EspeakEngine  # noqa: PLC0415

        return EspeakEngine.load()
    raise jobkit.JobError(
        "engine_unknown", f"LAMPLIGHTER_TTS_ENGINE is {name!r}: set it to one of {', '.join(ENGINES)}"
    )


def work(job: jobkit.Job, engine: Any) -> "dict[str, object]":
    """Run the job with the engine that `load` returned."""
    from tts_engines.work import speak  # noqa: PLC0415

    return speak(job, engine)


jobkit.run(work, load=load)
