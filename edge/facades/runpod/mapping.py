"""From RunPod's words to ours and back. Milliseconds there, seconds here."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field, structs

from edge.core.validation import decode_as
from schemas.container_protocol import OUTPUT_FILE
from schemas.job_view import JobView, OutputView
from schemas.status import FINAL_STATUSES, Status

# A failure whose code is one of these is a time that ran out.
TIMEOUT_CODES = ("execution_timeout",)

# `cancelling` may yet end otherwise, so it is not told as CANCELLED: clients stop asking at that.
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

# What a submit may say in our own words too.
NATIVE_FIELDS = ("priority", "tags", "not_before", "deadline", "await_input", "trace_id")

Milliseconds = Annotated[float, Meta(ge=0)]


class RunPolicy(Struct, frozen=True, rename="camel"):
    """Left out, null and 0: the endpoint's own."""

    execution_timeout: Milliseconds | None = None
    ttl: Milliseconds | None = None
    low_priority: bool | None = None


class RunRequest(Struct, frozen=True):
    """The body of `run` and `runsync`. Unknown keys are ignored, as RunPod does."""

    input: dict[str, Any]
    webhook: str | None = None
    policy: RunPolicy | None = field(default_factory=RunPolicy)


def build_submission(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """The native body. Raises Refused `input_invalid`, naming the path."""
    asked = decode_as(body, RunRequest)
    policy = asked.policy or RunPolicy()
    made: dict[str, Any] = {name: body[name] for name in NATIVE_FIELDS if name in body}
    made |= {"endpoint": endpoint, "input": asked.input, "policy": _policy_limits(policy)}
    if asked.webhook:
        made["webhook"] = {"url": asked.webhook}
    if policy.low_priority:
        made["priority"] = "low"
    return made


def _policy_limits(policy: RunPolicy) -> dict[str, float]:
    """`ttl` ends only what has not started, which is our start_timeout_s."""
    told = {"execution_timeout_s": policy.execution_timeout, "start_timeout_s": policy.ttl}
    return {name: value / 1000 for name, value in told.items() if value}


def status_of(job: JobView) -> str:
    """RunPod's word for where the job stands."""
    timed_out = job.error is not None and job.error.code in TIMEOUT_CODES
    return "TIMED_OUT" if timed_out and job.status is Status.FAILED else STATUSES[job.status]


def id_and_status(job: JobView) -> dict[str, Any]:
    """The answer of `run`, `cancel` and `retry`."""
    return {"id": job.id, "status": status_of(job)}


def job_status(job: JobView) -> dict[str, Any]:
    """The answer of `status` and `runsync`."""
    return id_and_status(job) | _times(job) | _output_or_error(job)


def job_output(output: OutputView) -> dict[str, Any]:
    """What the image answered, and its files where there are any: that answer as a file is none of them."""
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
    """`delayTime`: waiting for a start; `executionTime`: at work. Each from when it is known."""
    waited = _duration_ms(job.usage.queued_s, job.queued_at, job.started_at)
    worked = _duration_ms(job.usage.run_s, job.started_at, job.finished_at)
    told = {"delayTime": waited, "executionTime": worked}
    return {name: value for name, value in told.items() if value is not None}


def _duration_ms(seconds: float | None, began: datetime | None, ended: datetime | None) -> int | None:
    if seconds is None and began is not None and ended is not None:
        seconds = (ended - began).total_seconds()
    return None if seconds is None else max(0, round(seconds * 1000))
