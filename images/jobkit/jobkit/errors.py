"""Exceptions for failures of a job, their exit codes, and the codes of other exceptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

_CODE_PATTERN = re.compile("[a-z_]{1,40}")
STOPPED_EXIT = 143  # 128 + SIGTERM, the convention of shells and Docker


class JobError(Exception):
    """A failure with a code (`[a-z_]{1,40}`) and a message for the user. Raise one of its subclasses."""

    exit_code = 70

    def __init__(self, code: str, message: str) -> None:
        if not _CODE_PATTERN.fullmatch(code):
            raise ValueError(f"{code!r} is not a failure code: use 1 to 40 characters of a-z and _")
        super().__init__(message)
        self.code = code
        self.message = message


class BadJob(JobError):
    """The job is invalid as a whole. The client's fault, never retried."""

    exit_code = 64


class BadInput(JobError):
    """An input cannot be used: `BadInput("no_face", "…")`. The client's fault, never retried."""

    exit_code = 65


class GpuUnusable(JobError):
    """The GPU or its driver cannot be used. The job is retried on another GPU or later, and no attempt is counted."""

    exit_code = 69


class TryAgain(JobError):
    """A temporary problem. The job is retried."""

    exit_code = 75


class Stopped(BaseException):
    """The runner asked the job to stop (SIGTERM). Clean up and re-raise it; `except Exception` does not catch it."""


class ExitReport(NamedTuple):
    """The code, message and exit code for an exception."""

    code: str
    message: str
    exit_code: int


# torch raises RuntimeError for most of these, so only the text distinguishes them. Sources:
# torch/c10/cuda/CUDAException, CUDACachingAllocator, and cudaGetErrorString in NVIDIA's runtime API reference.
CUDA_TEXTS = (
    ("cuda out of memory", "cuda_oom", 75),
    ("cuda error: out of memory", "cuda_oom", 75),
    ("cuda_error_out_of_memory", "cuda_oom", 75),
    ("cudaerrormemoryallocation", "cuda_oom", 75),
    ("no cuda-capable device", "gpu_unhealthy", 69),
    ("no cuda gpus are available", "gpu_unhealthy", 69),
    ("devices are busy or unavailable", "gpu_unhealthy", 69),
    ("cuda unknown error", "gpu_unhealthy", 69),
    ("uncorrectable ecc error", "gpu_unhealthy", 69),
    ("gpu is lost", "gpu_lost", 69),
    # The GPU works, but this image does not support it or its driver.
    ("no kernel image is available", "gpu_unsupported", 69),
    ("unsupported toolchain", "gpu_unsupported", 69),
    ("driver version is insufficient", "gpu_unsupported", 69),
    ("forward compatibility was attempted", "gpu_unsupported", 69),
)


def _from_job_error(error: BaseException) -> ExitReport | None:
    if isinstance(error, JobError):
        return ExitReport(error.code, error.message, error.exit_code)
    return None


def _from_cuda_text(error: BaseException) -> ExitReport | None:
    text = str(error).lower()
    for fragment, code, exit_code in CUDA_TEXTS:
        if fragment in text:
            return ExitReport(code, str(error), exit_code)
    return None


def _from_memory_error(error: BaseException) -> ExitReport | None:
    if isinstance(error, MemoryError):
        return ExitReport("out_of_memory", str(error) or "the process could not get more memory", 70)
    return None


def _from_import_error(error: BaseException) -> ExitReport | None:
    """A module that is missing is missing on every host. A shared library may be missing on this one only."""
    if isinstance(error, ImportError) and ".so" not in str(error):
        return ExitReport("module_missing", f"{type(error).__name__}: {error}", 70)
    return None


_CLASSIFIERS: tuple[Callable[[BaseException], ExitReport | None], ...] = (
    _from_job_error,
    _from_cuda_text,
    _from_memory_error,
    _from_import_error,
)


def classify_exception(error: BaseException, otherwise: str = "internal") -> ExitReport:
    """Return the report for `error`. `otherwise` is the code of an unknown exception."""
    for classify in _CLASSIFIERS:
        failure = classify(error)
        if failure is not None:
            return failure
    return ExitReport(otherwise, f"{type(error).__name__}: {error}", 70)
