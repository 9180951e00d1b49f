"""Verdict: how an attempt ended. Pure: a table of rules, read from the top; the first rule that applies decides.

The order matters. A job that we stopped exits with 137 or 143 like one that crashed, so our own stop reason comes
first. An OOM kill of a child hides behind the parent's exit code. A GPU error makes any exit code suspect.
"""

import errno
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from bus.interface import MessageTooLarge
from runner.assets.port import AssetError, NotPlainFile, SecretMissing
from runner.engines.port import ContainerExit, StartFailed
from runner.execution.job_files import InvalidJobInput, OutputRefused
from runner.gpu.health import APPLICATION_XIDS, describe_xid
from schemas.container_protocol import EXIT_FAILURES, ErrorLine, ExitCode
from schemas.events import AttemptReleased, Cancelled, Failed, Succeeded
from schemas.job import AttemptUsage, Blame, Job, JobMetric, Output
from schemas.lifecycle import (
    DRAINED_CODE,
    FAILURES,
    HOST_LOST_CODE,
    MODULE_MISSING_CODE,
    SECRET_MISSING_CODE,
    FailureClass,
    classify_failure,
    outcome_after_failure,
)


class StopReason(StrEnum):
    """Why the runner stopped a container. It is stored before the stop, because the exit looks like that of a crash."""

    CANCEL = "cancel"
    EXECUTION_TIMEOUT = "execution_timeout"
    STALL = "stall"
    DRAIN = "drain"
    DISK = "disk"


class ExitFacts(Struct, frozen=True, kw_only=True):
    """All that is known about the end of an attempt.

    `exit` is missing if no container ran to its end. `failure` is the error that ended the run, for example one of the
    start. `xid` is the first GPU fault during the run, `error_line` the last error line of the job. `has_output`: out/
    contains something. `disk_excess` says, in figures, why the job used too much disk. `stderr_end` is the last line of
    stderr.
    """

    stop_reason: StopReason | None = None
    exit: ContainerExit | None = None
    failure: Exception | None = None
    xid: int | None = None
    error_line: ErrorLine | None = None
    has_output: bool = False
    disk_excess: str | None = None
    stderr_end: str = ""


class Done(Struct, frozen=True):
    """The job succeeded; its outputs are to be collected."""


class JobCancelled(Struct, frozen=True):
    """The owner cancelled the job, and it has stopped."""


class ClassifiedFailure(Struct, frozen=True):
    """The job failed; `failure_class` decides whether there is another attempt."""

    code: str
    message: str
    failure_class: FailureClass


Verdict = Done | JobCancelled | ClassifiedFailure


def make_failure(code: str, message: str) -> ClassifiedFailure:
    """Return the failure with this code, classified by the table."""
    return ClassifiedFailure(code, message, FAILURES[code])


# Failures of the class GPU that do not blame the GPU: the job is too large for it, or is not built for it.
IMAGE_FAULTS = frozenset({"cuda_oom", "gpu_unsupported"})


def blames_gpu(verdict: ClassifiedFailure, *, started: bool) -> bool:
    """Return whether the GPU needs a probe before it takes more. A start that was refused is the host's problem."""
    return verdict.failure_class.blame is Blame.GPU and not (started and verdict.code in IMAGE_FAULTS)


VERDICT_BY_STOP_REASON: Mapping[StopReason, Verdict] = {
    StopReason.CANCEL: JobCancelled(),
    StopReason.EXECUTION_TIMEOUT: make_failure(
        "execution_timeout", "the job ran longer than its timeout: raise execution_timeout_s"
    ),
    StopReason.STALL: make_failure("stalled", "the job made no progress within its timeout: raise stall_timeout_s"),
    StopReason.DRAIN: make_failure(DRAINED_CODE, "the host is shutting down"),
    StopReason.DISK: make_failure("disk_exceeded", "the job used more disk than its endpoint's disk_mb"),
}
XID_OFF_THE_BUS = 79
PYTHON_ERROR_EXIT = 1  # of a program that ends with a traceback
IMPORT_ERRORS = ("ModuleNotFoundError:", "ImportError:")
SIGNAL_NAMES = {6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def _stopped_by_runner(facts: ExitFacts) -> Verdict | None:
    if facts.stop_reason is StopReason.DISK and facts.disk_excess is not None:
        return _over_disk_limit(facts)  # with the figures
    return VERDICT_BY_STOP_REASON[facts.stop_reason] if facts.stop_reason is not None else None


def _out_of_memory(facts: ExitFacts) -> Verdict | None:
    if facts.exit is None or not facts.exit.oom_killed:
        return None
    return make_failure("out_of_memory", "the job needed more memory than its endpoint's memory_mb")


def _run_failed(facts: ExitFacts) -> Verdict | None:
    return failure_of_run(facts.failure) if facts.failure is not None else None


def _gpu_erred(facts: ExitFacts) -> Verdict | None:
    """Skip application faults (XID 13, 31, …): they are the job's own, and its exit code says more than the driver."""
    if facts.xid is None or facts.xid in APPLICATION_XIDS:
        return None
    code = "gpu_lost" if facts.xid == XID_OFF_THE_BUS else "gpu_unhealthy"
    return make_failure(code, f"the driver reported {describe_xid(facts.xid)}")


def _vanished(facts: ExitFacts) -> Verdict | None:
    return make_failure(HOST_LOST_CODE, "the container is gone") if facts.exit is None else None


def _over_disk_limit(facts: ExitFacts) -> Verdict | None:
    """Decide before the exit code: a job without disk space fails in its own way."""
    return make_failure("disk_exceeded", facts.disk_excess) if facts.disk_excess is not None else None


def _module_missing(facts: ExitFacts) -> Verdict | None:
    """Recognize a program of Python whose import failed, before it could report anything.

    Such a job fails in the same way on every host. A shared library may be missing on this host only.
    """
    if facts.exit is None or facts.exit.code != PYTHON_ERROR_EXIT or facts.error_line is not None:
        return None
    if not facts.stderr_end.startswith(IMPORT_ERRORS) or ".so" in facts.stderr_end:
        return None
    return make_failure(MODULE_MISSING_CODE, facts.stderr_end)


def _exited_with_error(facts: ExitFacts) -> Verdict | None:
    if facts.exit is None or facts.exit.code == ExitCode.DONE:
        return None
    code = EXIT_FAILURES.get(facts.exit.code) or "internal"
    return _by_error_line(facts.error_line, make_failure(code, _describe_exit(facts.exit.code)))


def _no_output(facts: ExitFacts) -> Verdict | None:
    if facts.has_output:
        return None
    because = f": {facts.error_line.message}" if facts.error_line else ""
    return make_failure("output_missing", f"the job exited with 0 and left nothing in out/{because}")


def _done(_: ExitFacts) -> Verdict | None:
    return Done()


RULES: tuple[Callable[[ExitFacts], Verdict | None], ...] = (
    _stopped_by_runner,
    _out_of_memory,
    _run_failed,
    _gpu_erred,
    _vanished,
    _over_disk_limit,
    _module_missing,
    _exited_with_error,
    _no_output,
    _done,
)


def _describe_exit(code: int) -> str:
    number = code - 128
    if 0 < number < 65:
        return f"the job was killed by {SIGNAL_NAMES.get(number, f'signal {number}')} (exit code {code})"
    return f"the job exited with code {code}"


def _by_error_line(error_line: ErrorLine | None, exit_failure: ClassifiedFailure) -> ClassifiedFailure:
    """Return the failure that the image reported, classified by the table or by the exit code.

    An image may not report a host's failure code: such a failure costs no attempt, and the job would run forever.
    """
    if error_line is None:
        return exit_failure
    failure_class = classify_failure(error_line.code, exit_failure.failure_class)
    if failure_class.blame is Blame.HOST:
        failure_class = exit_failure.failure_class
    return ClassifiedFailure(error_line.code, error_line.message or exit_failure.message, failure_class)


DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


def failure_of_run(error: Exception) -> ClassifiedFailure:
    """Return the failure for an error of the inputs, the secrets, the start or the output."""
    if isinstance(error, StartFailed):
        return make_failure(error.code, error.message)
    if isinstance(error, SecretMissing):
        return make_failure(SECRET_MISSING_CODE, str(error))
    if isinstance(error, AssetError):
        return make_failure("asset_gone", str(error))
    if isinstance(error, InvalidJobInput):
        return make_failure("bad_input", str(error))
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return make_failure("disk_full", "the host's disk is full")
    return make_failure("engine_error", str(error))


def output_failure(error: OutputRefused | AssetError) -> ClassifiedFailure:
    """Return the failure for outputs that cannot be collected or uploaded."""
    if isinstance(error, OutputRefused):
        return make_failure(error.code, error.message)
    return make_failure("output_invalid" if isinstance(error, NotPlainFile) else "output_too_large", str(error))


def result_too_large(error: MessageTooLarge) -> ClassifiedFailure:
    """Return the failure for a result that does not fit into the record."""
    return make_failure("output_too_large", f"{error}: write large results into files")


def classify_exit(facts: ExitFacts) -> Verdict:
    """Return the verdict on the attempt."""
    return next(verdict for rule in RULES if (verdict := rule(facts)) is not None)


FinalEvent = Succeeded | Cancelled | AttemptReleased | Failed


class ExecutionResult(Struct, frozen=True):
    """The result to record: verdict, use of the host, log and outputs."""

    verdict: Verdict
    usage: AttemptUsage
    log: str | None = None
    output: Output = Output()
    log_tail: tuple[str, ...] = ()
    metrics: tuple[JobMetric, ...] = ()

    def final_event(self, job: Job, *, at: datetime, jitter: float) -> FinalEvent:
        """Return the event for the verdict and the job as it is recorded now. `jitter` in [0, 1) spreads retries."""
        verdict = self.verdict
        if isinstance(verdict, Done):
            return Succeeded(self.output, self.usage, self.log, self.metrics)
        if isinstance(verdict, JobCancelled):
            return Cancelled(self.usage, self.log, self.metrics)
        return outcome_after_failure(
            job,
            verdict.code,
            verdict.message,
            verdict.failure_class,
            at=at,
            jitter=jitter,
            usage=self.usage,
            log=self.log,
            log_tail=self.log_tail,
            metrics=self.metrics,
        )
