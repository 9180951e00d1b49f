"""Fields that mean the same in every component of `/openapi.json`, and the examples that `api_fields` uses."""

from typing import Any, Final, NamedTuple


class FieldNote(NamedTuple):
    """The description of a field, and a value that it may have."""

    text: str
    example: Any = None


EXAMPLE_TIME = "2026-11-29T18:02:43Z"
EXAMPLE_LATER = "2026-11-29T18:04:07Z"
EXAMPLE_JOB_ID = "3c5916982c2ec6cef6fcef224e797de6"
EXAMPLE_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
EXAMPLE_DIGEST = f"sha256:{EXAMPLE_SHA256}"
EXAMPLE_SCOPES = ["jobs:read", "jobs:write"]
EXAMPLE_GPU = "GPU-3f0b1c2d"

_N = FieldNote

# For every component that has a field of this name.
COMMON_FIELDS: Final[dict[str, FieldNote]] = {
    "accepted": _N("The jobs that are stored now, in the order of the request"),
    "action": _N("What is done to each job", "cancel"),
    "actions": _N("The actions, newest first"),
    "assets": _N("The files of this page"),
    "at": _N("When it happened", EXAMPLE_TIME),
    "attempt": _N("The number of the attempt within its round, from 1; 0 before the first", 1),
    "bytes": _N("The size in bytes", 6),
    "code": _N("A stable code; docs/errors.md lists all", "job_final"),
    "created_at": _N("When it was created", EXAMPLE_TIME),
    "cost": _N("The cost"),
    "currency": _N("The currency, as the settings name it", "CNY"),
    "data": _N("The body of the event"),
    "detail": _N("What happened, why, and what to do, in the language of Accept-Language", "the job has ended"),
    "digest": _N("What a job's input takes: `sha256:` and 64 hex digits", EXAMPLE_DIGEST),
    "done": _N("How many steps are done; null if the job does not count them", 105),
    "endpoint": _N("The name of an endpoint", "echo"),
    "energy_j": _N("The energy of the GPUs in joules", 5120.0),
    "engine": _N("What runs jobs there: `docker` or `process`", "docker"),
    "expires_at": _N("Until when it is valid; null: without an end", EXAMPLE_LATER),
    "failed": _N("How many jobs could not be changed", 0),
    "finished_at": _N("When it ended; null before that", EXAMPLE_LATER),
    "fraction": _N("How much is done, from 0 to 1", 0.42),
    "gpu_s": _N("Seconds of GPU time", 61.5),
    "gpus": _N("The GPUs"),
    "host": _N("The id of a host", "gpu-1"),
    "hosts": _N("The hosts"),
    "program": _N("Which image and which endpoint.toml that was; null: not known"),
    "hosts_pending": _N("Hosts that may still have the bytes in their caches", ["gpu-1"]),
    "hours_on": _N("Hours in which hosts were on", 1.5),
    "id": _N("The id", EXAMPLE_JOB_ID),
    "image": _N("The name of the container image", "lamplighter-echo"),
    "input": _N("The input of the job, by the JSON Schema of its endpoint", {"text": "hi", "file": EXAMPLE_DIGEST}),
    "job_id": _N("The id of the job", EXAMPLE_JOB_ID),
    "jobs": _N("The number of jobs", 12),
    "language": _N("`zh` or `en`; null: English unless a request asks for another", "en"),
    "media_type": _N("The media type", "video/mp4"),
    "message": _N("The same for people, in the language of Accept-Language", "It is next in line"),
    "missing": _N("Digests of files that have not been uploaded", [EXAMPLE_DIGEST]),
    "name": _N("The name", "face.mp4"),
    "next_cursor": _N("Give it as `cursor` to get the next page; null on the last page", None),
    "offset": _N("The position in the output of the attempt, in bytes", 1024),
    "owner": _N("The owner", "ann"),
    "power_w": _N("The electrical power in watts; null: not reported", 210.5),
    "present": _N("The digests that the owner has", [EXAMPLE_DIGEST]),
    "previous_until": _N("Until when the previous secret stays valid; null: there is none", None),
    "priority": _N("The lane of the queue", "normal"),
    "reason": _N("The reason as a code; null: there is none", None),
    "requested_at": _N("When it was requested", EXAMPLE_TIME),
    "revision": _N("Rises with every change of the job", 12),
    "round": _N("The number of the round, from 1; each retry starts a new one", 1),
    "scopes": _N("What it may do", EXAMPLE_SCOPES),
    "sha256": _N("The SHA-256 of the bytes as 64 hex digits", EXAMPLE_SHA256),
    "since": _N("Since when", EXAMPLE_TIME),
    "stage": _N("What the job does at the moment, in its own words", "render"),
    "state": _N("The state", "running"),
    "status": _N("The state of the job", "queued"),
    "tags": _N("Names and values to search by, at most 16", {"project": "x"}),
    "temperature_c": _N("The temperature in degrees Celsius; null: not reported", 61),
    "memory_total_mb": _N("Its memory in MiB; null: not reported", 24_564),
    "token": _N("The token; only this answer has it", "lampt_…"),
    "total": _N("How many steps there are; null if the job does not count them", 250),
    "trace_id": _N("The name of the job in logs", "order-17"),
    "url": _N("Where to fetch it", f"/v1/assets/{EXAMPLE_SHA256}"),
    "uuid": _N("The UUID of the GPU", EXAMPLE_GPU),
    "utilization": _N("How busy it is, in percent; null: not reported", 87),
    "compute_capability": _N("Its CUDA compute capability; null: not reported", "8.9"),
    "webhook": _N("Where the states of the job are delivered"),
}
