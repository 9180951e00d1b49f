"""Run one job in this process: load, wait for the job if warm, work, write the result, exit with the right code."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jobkit.errors import STOPPED_EXIT, BadInput, BadJob, JobError, Stopped, classify_exception
from jobkit.job import Job
from jobkit.messages import MessageWriter, claim_stdout
from jobkit.warm import bind_start_socket, wait_for_start

MESSAGE_LIMIT_CHARS = 4_000  # the runner ignores a line over 64 KiB


class _LoadFailed(JobError):
    """An exception that `load` raised."""


def run(
    work: Callable[..., Mapping[str, Any] | None], load: Callable[[], Any] | None = None, *, reuse: bool = False
) -> NoReturn:
    """Run one job and exit: `work(job)`, or `work(job, load())`. The return value of `work` becomes the job's data.

    `load` does the expensive part that does not depend on a job. In a warm container it runs before the job arrives.
    With `reuse`, and `[reuse]` in endpoint.toml, the process runs one job after another with what `load` returned. Then
    `work` must leave nothing behind: no process, no thread that works on, no file outside `job.tmp`.
    """
    messages = MessageWriter(claim_stdout())
    code = _run_to_exit_code(work, load, messages, reuse=reuse)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of libraries may hang, and CUDA's teardown may crash. The result is on disk already.
    os._exit(code)


def _run_to_exit_code(
    work: Callable[..., Mapping[str, Any] | None],
    load: Callable[[], Any] | None,
    messages: MessageWriter,
    *,
    reuse: bool,
) -> int:
    """Run the job and return the exit code. Report an exception to the runner."""
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
        if os.environ.get("LAMPLIGHTER_REUSE") == "1":
            _run_jobs(work, load, messages, reuse=reuse)
        else:
            _run_job(work, load, messages)
    except Stopped:
        return STOPPED_EXIT
    except BaseException as error:  # the runner gets a message for every failure
        if _is_caused_by_stop(error):
            return STOPPED_EXIT
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process ends anyway, so let it write the message
        sys.excepthook(*sys.exc_info())  # not the module traceback: its import would add milliseconds to each start
        failure = classify_exception(error)
        messages.write("error", code=failure.code, message=failure.message[:MESSAGE_LIMIT_CHARS])
        return failure.exit_code
    return 0


def _job_folder() -> Path:
    """Return the folder that the container shares with the runner."""
    return Path(os.environ.get("LAMPLIGHTER_JOB", "/job"))


def _run_job(
    work: Callable[..., Mapping[str, Any] | None], load: Callable[[], Any] | None, messages: MessageWriter
) -> None:
    folder = _job_folder()
    if os.environ.get("LAMPLIGHTER_WARM") == "1":
        loaded = _call_load(load)
        with bind_start_socket(folder) as listener:
            messages.write("ready")
            wait_for_start(listener)
        job = Job(folder, messages)
    else:
        job = Job(folder, messages)
        loaded = _call_load(load)
    job.finish(work(job, *loaded))


def _run_jobs(
    work: Callable[..., Mapping[str, Any] | None],
    load: Callable[[], Any] | None,
    messages: MessageWriter,
    *,
    reuse: bool,
) -> None:
    """Run jobs 1, 2, … each in its folder, until one raises; without `reuse`, only the first one.

    An input that cannot be used says nothing about this process: the next job runs all the same.
    """
    root = _job_folder()
    loaded = _call_load(load)
    for number in itertools.count(1):
        with bind_start_socket(root, number) as listener:
            _write_to_both(messages, "ready", job=number)
            wait_for_start(listener)
        folder = root / str(number)
        _use_temporary_folder(folder / "tmp")
        try:
            job = Job(folder, messages)
            job.finish(work(job, *loaded))
        except (BadInput, BadJob) as error:
            if not reuse:
                raise
            messages.write("error", code=error.code, message=error.message[:MESSAGE_LIMIT_CHARS])
            code = error.exit_code
        else:
            code = 0
        if not reuse:
            return
        _write_to_both(messages, "end", code=code)


def _write_to_both(messages: MessageWriter, kind: str, **fields: Any) -> None:
    """Write a message that separates jobs. On stderr, where stdout is redirected to, it separates their logs."""
    sys.stdout.flush()
    sys.stderr.flush()
    MessageWriter(2).write(kind, **fields)
    messages.write(kind, **fields)


def _use_temporary_folder(folder: Path) -> None:
    """Make temporary files of this job, and of programs that it starts, go with the job's folder."""
    os.environ["TMPDIR"] = str(folder)
    if "tempfile" in sys.modules:  # it keeps its folder from the first use on
        sys.modules["tempfile"].tempdir = str(folder)  # type: ignore[attr-defined]


def _call_load(load: Callable[[], Any] | None) -> tuple[Any, ...]:
    """Return the arguments of `work` after the job."""
    if load is None:
        return ()
    try:
        return (load(),)
    except Exception as error:
        failure = classify_exception(error, "model_load_failed")
        load_failed = _LoadFailed(failure.code, failure.message)
        load_failed.exit_code = failure.exit_code
        raise load_failed from error


def _is_caused_by_stop(error: BaseException) -> bool:
    """Return whether `error` was raised while `Stopped` was handled.

    The signal may arrive inside a lock of a library, whose clean-up then fails with an error of its own.
    """
    context = error.__context__
    while context is not None and not isinstance(context, Stopped):
        context = context.__context__
    return context is not None


def _on_sigterm(_signal: int, _frame: object) -> NoReturn:
    raise Stopped
