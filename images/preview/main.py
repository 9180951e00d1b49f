"""The image's program: run one preview job and exit."""

from typing import Any

import jobkit


def load() -> Any:
    """Load the engine. It is imported here, so that a missing package fails the job instead of crashing the program."""
    try:
        from lipsync import engine  # noqa: PLC0415
    except ModuleNotFoundError as error:
        advice = "run ./justw setup demo on that host, or use the preview image"
        raise jobkit.JobError("module_missing", f"{error.name} is not installed for preview: {advice}") from error
    return engine.load()


def work(job: jobkit.Job, engine: Any) -> dict[str, Any]:
    """Run the job with the engine that `load` returned."""
    from lipsync.work import work as run  # noqa: PLC0415

    return run(job, engine)


jobkit.run(work, load=load)
