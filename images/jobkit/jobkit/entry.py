"""The life of a job's process: load, wait for the job if warm, work, write the result, exit with the right code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jobkit.errors import STOPPED_EXIT, JobError, Stopped, classify_exception
from jobkit.job import Job
from jobkit.messages import MessageWriter, claim_stdout
from jobkit.warm import bind_start_socket, wait_for_start

MESSAGE_LIMIT_CHARS = 4_000  # characters; a line over 64 KiB would be no message


class _LoadFailed(JobError):
    """`load` raised something of its own."""


def run(work: Callable[..., Mapping[str, Any] | None], load: Callable[[], Any] | None = None) -> NoReturn:
    """Run one job and exit: `work(job)`, or `work(job, load())`. What `work` returns becomes the job's data.

    `load` is the heavy part that no job is needed for: in a warm slot it is done before the job comes.
    """
    lines = MessageWriter(claim_stdout())
    code = _run_to_exit_code(work, load, lines)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: libraries' threads may hang and CUDA's teardown may crash, and the result is on disk.
    os._exit(code)


def _run_to_exit_code(
    work: Callable[..., Mapping[str, Any] | None], load: Callable[[], Any] | None, lines: MessageWriter
) -> int:
    """The exit code."""
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
        _run_job(work, load, lines)
    except Stopped:
        return STOPPED_EXIT
    except BaseException as error:  # every end of a job is told to the runner
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway; let it say why
        sys.excepthook(*sys.exc_info())  # as the module traceback does, without its import: a start is counted in ms
        failure = classify_exception(error)
        lines.write("error", code=failure.code, message=failure.message[:MESSAGE_LIMIT_CHARS])
        return failure.exit_code
    return 0


def _run_job(
    work: Callable[..., Mapping[str, Any] | None], load: Callable[[], Any] | None, lines: MessageWriter
) -> None:
    folder = Path(os.environ.get("LAMPLIGHTER_JOB", "/job"))
    if os.environ.get("LAMPLIGHTER_WARM") == "1":
        loaded = _call_load(load)
        with bind_start_socket(folder) as listener:
            lines.write("ready")
            wait_for_start(listener)
        job = Job(folder, lines)
    else:
        job = Job(folder, lines)
        loaded = _call_load(load)
    job.finish(work(job, *loaded))


def _call_load(load: Callable[[], Any] | None) -> tuple[Any, ...]:
    """What `work` gets besides the job."""
    if load is None:
        return ()
    try:
        return (load(),)
    except Exception as error:
        failure = classify_exception(error, "model_load_failed")
        told = _LoadFailed(failure.code, failure.message)
        told.exit_code = failure.exit_code
        raise told from error


def _on_sigterm(_signal: int, _frame: object) -> NoReturn:
    raise Stopped
