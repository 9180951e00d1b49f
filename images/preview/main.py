"""The image's program: one preview job, then gone."""

from typing import Any

import jobkit


def load() -> Any:
    """The engine. Imported here, so that a missing package is the job's failure and not a traceback in its log."""
    try:
        from lipsync import engine  # noqa: PLC0415
    except ModuleNotFoundError as error:
        advice = "run ./justw setup demo on that host, or use the preview image"
        raise jobkit.JobError("model_load_failed", f"{error.name} is not installed for preview: {advice}") from error
    return engine.load()


def work(job: jobkit.Job, engine: Any) -> dict[str, Any]:
    """Do the job with what `load` gave."""
    from lipsync.work import work as run  # noqa: PLC0415

    return run(job, engine)


jobkit.run(work, load=load)
