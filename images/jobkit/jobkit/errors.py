"""How a job fails: what to raise, the exit code of it, and what any other exception means."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

_CODE_PATTERN = re.compile("[a-z_]{1,40}")
STOPPED_EXIT = 143  # 128 + SIGTERM, as a shell and Docker say it


class JobError(Exception):
    """A failure with a code (`[a-z_]{1,40}`) and a message for the user. Raise one of its children."""

    exit_code = 70

    def __init__(self, code: str, message: str) -> None:
        if not _CODE_PATTERN.fullmatch(code):
            raise ValueError(f"{code!r} is no failure code: give 1 to 40 of a-z and _")
        super().__init__(message)
        self.code = code
        self.message = message


class BadJob(JobError):
    """The job itself makes no sense. The client's fault, never retried."""

    exit_code = 64


class BadInput(JobError):
    """An input cannot be used: `BadInput("no_face", "…")`. The client's fault, never retried."""

    exit_code = 65


class GpuUnusable(JobError):
    """The GPU or its driver cannot be used: another card or later. Costs no attempt."""

    exit_code = 69


class TryAgain(JobError):
    """Something passing was in the way."""

    exit_code = 75


class Stopped(BaseException):
    """The runner asked the job to stop (SIGTERM). Clean up and let it pass: no `except Exception` catches it."""


class ExitReport(NamedTuple):
    """What an exception comes to."""

    code: str
    message: str
    exit_code: int


# torch raises RuntimeError for most of these; only the text tells. Sources: torch/c10/cuda/CUDAException,
# CUDACachingAllocator, and cudaGetErrorString in NVIDIA's runtime API reference.
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
    # The card is well, but this image and this card or driver do not go together.
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


_CLASSIFIERS: tuple[Callable[[BaseException], ExitReport | None], ...] = (
    _from_job_error,
    _from_cuda_text,
    _from_memory_error,
)


def classify_exception(error: BaseException, otherwise: str = "internal") -> ExitReport:
    """What `error` comes to; `otherwise` is the code of an exception that nothing here knows."""
    for reading in _CLASSIFIERS:
        failure = reading(error)
        if failure is not None:
            return failure
    return ExitReport(otherwise, f"{type(error).__name__}: {error}", 70)
