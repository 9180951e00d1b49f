"""Translate between RunPod's format and ours: bodies, statuses and jobs. Pure.

RunPod uses milliseconds, and this project uses seconds.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field, structs

from edge.core.validation import decode_as
from schemas.container_protocol import OUTPUT_FILE
from schemas.job_view import JobView, OutputView
from schemas.status import FINAL_STATUSES, Status

# Failures with these codes are timeouts.
TIMEOUT_CODES = ("execution_timeout",)

# CANCELLING is not CANCELLED: the job may still end in another way, and clients stop polling at CANCELLED.
STATUSES: Mapping[Status, str] = {
    Status.SCHEDULED: "IN_QUEUE",
    Status.QUEUED: "IN_QUEUE",
    Status.RUNNING: "IN_PROGRESS",
    Status.CANCELLING: "IN_PROGRESS",
    Status.SUCCEEDED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
    Status.EXPIRED: "TIMED_OUT",
}

# Native fields that a RunPod submit may also contain.
NATIVE_FIELDS = ("priority", "tags", "not_before", "deadline", "await_input", "trace_id")

Milliseconds = Annotated[float, Meta(ge=0)]


class RunPolicy(Struct, frozen=True, rename="camel"):
    """The `policy` of a submit. Absent, null and 0 mean the default of the endpoint."""

    execution_timeout: Milliseconds | None = None
    ttl: Milliseconds | None = None
    low_priority: bool | None = None


class RunRequest(Struct, frozen=True):
    """The body of `run` and `runsync`. Unknown keys are ignored, as RunPod does."""

    input: dict[str, Any]
    webhook: str | None = None
    policy: RunPolicy | None = field(default_factory=RunPolicy)


def build_submission(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the native body. Raises ProblemError `input_invalid`, which names the field."""
    request = decode_as(body, RunRequest)
    policy = request.policy or RunPolicy()
    native: dict[str, Any] = {name: body[name] for name in NATIVE_FIELDS if name in body}
    native |= {"endpoint": endpoint, "input": request.input, "policy": _policy_limits(policy)}
    if request.webhook:
        native["webhook"] = {"url": request.webhook}
    if policy.low_priority:
        native["priority"] = "low"
    return native


def _policy_limits(policy: RunPolicy) -> dict[str, float]:
    """Return the native limits. `ttl` ends only jobs that have not started, as start_timeout_s does."""
    limits_ms = {"execution_timeout_s": policy.execution_timeout, "start_timeout_s": policy.ttl}
    return {name: value / 1000 for name, value in limits_ms.items() if value}


def status_of(job: JobView) -> str:
    """Return RunPod's status of the job."""
    timed_out = job.error is not None and job.error.code in TIMEOUT_CODES
    return "TIMED_OUT" if timed_out and job.status is Status.FAILED else STATUSES[job.status]


def id_and_status(job: JobView) -> dict[str, Any]:
    """Return the body of `run`, `cancel` and `retry`."""
    return {"id": job.id, "status": status_of(job)}


def job_status(job: JobView) -> dict[str, Any]:
    """Return the body of `status` and `runsync`."""
    return id_and_status(job) | _times(job) | _output_or_error(job)


def job_output(output: OutputView) -> dict[str, Any]:
    """Return the output data of the job, and its files if there are any. output.json is not listed as a file."""
    files = [structs.asdict(file) for file in output.files if file.name != OUTPUT_FILE]
    return output.data | {"files": files} if files else output.data


def _output_or_error(job: JobView) -> dict[str, Any]:
    if job.output is not None and job.status is Status.SUCCEEDED:
        return {"output": job_output(job.output)}
    if job.progress is not None and job.status not in FINAL_STATUSES:
        return {"output": msgspec.to_builtins(job.progress)}
    if job.error is not None and job.status is Status.FAILED:
        return {"error": f"{job.error.code}: {job.error.message}"}
    return {"error": f"expired: {job.message}"} if job.status is Status.EXPIRED else {}


def _times(job: JobView) -> dict[str, int]:
    """Return `delayTime` (before the start) and `executionTime`, as far as they are known."""
    delay_ms = _duration_ms(job.usage.queued_s, job.queued_at, job.started_at)
    execution_ms = _duration_ms(job.usage.run_s, job.started_at, job.finished_at)
    times = {"delayTime": delay_ms, "executionTime": execution_ms}
    return {name: value for name, value in times.items() if value is not None}


def _duration_ms(seconds: float | None, began: datetime | None, ended: datetime | None) -> int | None:
    if seconds is None and began is not None and ended is not None:
        seconds = (ended - began).total_seconds()
    return None if seconds is None else max(0, round(seconds * 1000))
