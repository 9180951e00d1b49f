"""Notes for `/openapi.json`: on the operations, on the fields that many components share, and on the fields of jobs.

`OPERATIONS` has for each route its operation id, its tag, and the codes of its refusals. Which codes every route has
is in `COMMON_CODES`. `COMMON_FIELDS` mean the same in every component. `JOB_FIELDS` are those of jobs, of what is
submitted, and of the events of jobs; `edge.http.api_fields` has those of the other components, and uses the examples
here. Tests compare the tables with the routes and components.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple


class OperationNote(NamedTuple):
    """The name of an operation for generated clients, the section that it is in, and its refusals."""

    id: str
    tag: str
    codes: tuple[str, ...] = ()


TAGS: Final = {
    "jobs": "Submit, read, list, cancel, retry and delete jobs; their logs and output files",
    "events": "Follow jobs",
    "assets": "Files, by their SHA-256",
    "uploads": "Resumable uploads (tus 1.0.0)",
    "webhooks": "Owner-wide webhooks, deliveries of job states, and the secret that signs them",
    "endpoints": "What can run",
    "hosts": "GPU hosts and their power",
    "usage": "Jobs, GPU seconds, energy and cost",
    "keys": "API keys, tokens and the audit log",
    "secrets": "Secrets for the programs of jobs",
    "notifications": "Messages to operators",
    "session": "The session of a browser",
    "owners": "Owners, what they have, and the deletion of their data",
    "health": "Is it up, and how is it",
}

# Every route that needs a key may answer these.
COMMON_CODES: Final = (
    *("field_unknown", "unauthorized", "forbidden", "input_invalid", "too_many_connections"),
    *("internal", "unavailable"),
)
_BODY = ("body_malformed", "body_too_large")
_JOB = ("not_found",)
_STORE = ("store_full", "quota_exceeded", "owner_deleting", "digest_mismatch")
_SUBMIT = (
    *(*_BODY, *_STORE, "media_type_unknown", "endpoint_unknown", "conflict", "asset_missing", "url_refused"),
    *("idempotency_mismatch", "rate_limited", "secret_missing"),
)
_TUS = ("tus_version",)
_CHUNK = (
    *(*_TUS, *_STORE, "body_too_large", "media_type_unknown", "offset_mismatch", "upload_locked"),
    "checksum_mismatch",
)

OPERATIONS: Final[dict[tuple[str, str], OperationNote]] = {
    ("/v1/jobs", "post"): OperationNote("submitJob", "jobs", _SUBMIT),
    ("/v1/jobs", "get"): OperationNote("listJobs", "jobs"),
    ("/v1/jobs/{job_id}", "put"): OperationNote("submitJobWithId", "jobs", _SUBMIT),
    ("/v1/jobs/{job_id}", "get"): OperationNote("getJob", "jobs", _JOB),
    ("/v1/jobs/{job_id}", "delete"): OperationNote("deleteJob", "jobs", (*_JOB, "job_not_final")),
    ("/v1/jobs/{job_id}/history", "get"): OperationNote("getJobHistory", "jobs", _JOB),
    ("/v1/jobs/{job_id}/cancel", "post"): OperationNote("cancelJob", "jobs", (*_JOB, "job_final")),
    ("/v1/jobs/{job_id}/retry", "post"): OperationNote(
        "retryJob", "jobs", (*_JOB, "job_final", "job_not_final", "deadline_passed", "asset_missing", "quota_exceeded")
    ),
    ("/v1/jobs/{job_id}/logs", "get"): OperationNote("getJobLog", "jobs", _JOB),
    ("/v1/jobs/{job_id}/files/{name}", "get"): OperationNote("downloadJobFile", "jobs", _JOB),
    ("/v1/jobs/actions", "post"): OperationNote("startJobAction", "jobs", (*_BODY, "owner_deleting", "quota_exceeded")),
    ("/v1/jobs/actions", "get"): OperationNote("listJobActions", "jobs"),
    ("/v1/jobs/actions/{action_id}", "get"): OperationNote("getJobAction", "jobs", ("not_found",)),
    ("/v1/batches", "post"): OperationNote("submitBatch", "jobs", _SUBMIT),
    ("/v1/jobs/{job_id}/events", "get"): OperationNote("followJob", "events", _JOB),
    ("/v1/events", "get"): OperationNote("followJobs", "events"),
    ("/v1/assets", "post"): OperationNote("uploadAsset", "assets", (*_BODY, *_STORE)),
    ("/v1/assets", "get"): OperationNote("listAssets", "assets"),
    ("/v1/assets/{sha256}", "put"): OperationNote("uploadAssetByDigest", "assets", (*_BODY, *_STORE)),
    ("/v1/assets/{sha256}", "get"): OperationNote("downloadAsset", "assets", ("not_found",)),
    ("/v1/assets/{sha256}", "delete"): OperationNote("deleteAsset", "assets", ("not_found", "asset_in_use")),
    ("/v1/assets/check", "post"): OperationNote("checkAssets", "assets", _BODY),
    ("/v1/uploads", "post"): OperationNote("createUpload", "uploads", _CHUNK),
    ("/v1/uploads/{upload_id}", "head"): OperationNote("getUpload", "uploads", (*_TUS, "not_found")),
    ("/v1/uploads/{upload_id}", "patch"): OperationNote("appendToUpload", "uploads", (*_CHUNK, "not_found")),
    ("/v1/uploads/{upload_id}", "delete"): OperationNote(
        "deleteUpload", "uploads", (*_TUS, "not_found", "upload_locked")
    ),
    ("/v1/jobs/{job_id}/deliveries", "get"): OperationNote("listDeliveries", "webhooks", _JOB),
    ("/v1/deliveries", "get"): OperationNote("listAllDeliveries", "webhooks"),
    ("/v1/deliveries/{delivery_id}/replay", "post"): OperationNote(
        "replayDelivery", "webhooks", ("not_found", "conflict")
    ),
    ("/v1/webhooks", "get"): OperationNote("listWebhooks", "webhooks"),
    ("/v1/webhooks", "post"): OperationNote(
        "addWebhook", "webhooks", (*_BODY, "url_refused", "quota_exceeded", "owner_deleting")
    ),
    ("/v1/webhooks/{webhook_id}", "delete"): OperationNote("deleteWebhook", "webhooks", ("not_found",)),
    ("/v1/webhooks/{webhook_id}/test", "post"): OperationNote("testWebhook", "webhooks", ("not_found",)),
    ("/v1/webhooks/secret", "get"): OperationNote("getWebhookSecret", "webhooks"),
    ("/v1/webhooks/secret", "post"): OperationNote("rotateWebhookSecret", "webhooks", _BODY),
    ("/v1/endpoints", "get"): OperationNote("listEndpoints", "endpoints"),
    ("/v1/endpoints/{name}", "get"): OperationNote("getEndpoint", "endpoints", ("endpoint_unknown",)),
    ("/v1/endpoints/{name}/pause", "post"): OperationNote("pauseEndpoint", "endpoints", ("endpoint_unknown",)),
    ("/v1/endpoints/{name}/resume", "post"): OperationNote("resumeEndpoint", "endpoints", ("endpoint_unknown",)),
    ("/v1/hosts", "get"): OperationNote("listHosts", "hosts"),
    ("/v1/hosts", "post"): OperationNote("addHost", "hosts", (*_BODY, "conflict", "not_set_up")),
    ("/v1/hosts/{host}", "get"): OperationNote("getHost", "hosts", ("not_found",)),
    ("/v1/hosts/{host}", "delete"): OperationNote("removeHost", "hosts", ("not_found", "not_set_up")),
    ("/v1/hosts/{host}/samples", "get"): OperationNote("getHostSamples", "hosts", ("not_found",)),
    ("/v1/hosts/{host}/power", "post"): OperationNote("setHostPower", "hosts", (*_BODY, "not_found", "conflict")),
    ("/v1/hosts/{host}/maintenance", "post"): OperationNote("startMaintenance", "hosts", ("not_found",)),
    ("/v1/hosts/{host}/maintenance", "delete"): OperationNote("endMaintenance", "hosts", ("not_found",)),
    ("/v1/hosts/{host}/leave", "post"): OperationNote("leaveHost", "hosts", ("conflict", "not_set_up")),
    ("/v1/host-tokens", "get"): OperationNote("listHostTokens", "hosts"),
    ("/v1/host-tokens", "post"): OperationNote("createHostToken", "hosts", (*_BODY, "not_set_up")),
    ("/v1/host-tokens/{token_id}", "delete"): OperationNote("revokeHostToken", "hosts", ("not_found",)),
    ("/v1/host-tokens/join", "post"): OperationNote(
        "joinHost",
        "hosts",
        (
            *(*_BODY, "not_found", "conflict", "not_set_up"),
            *("join_token_expired", "join_token_revoked", "join_token_used_up"),
        ),
    ),
    ("/v1/relays", "post"): OperationNote("addRelay", "hosts", (*_BODY, "owner_deleting", "not_set_up")),
    ("/v1/usage", "get"): OperationNote("getUsage", "usage"),
    ("/v1/keys", "get"): OperationNote("listKeys", "keys"),
    ("/v1/keys", "post"): OperationNote("createKey", "keys", (*_BODY, "owner_deleting")),
    ("/v1/keys/{key_id}", "delete"): OperationNote("revokeKey", "keys", ("not_found",)),
    ("/v1/keys/{key_id}/rotate", "post"): OperationNote("rotateKey", "keys", (*_BODY, "not_found")),
    ("/v1/secrets", "get"): OperationNote("listSecrets", "secrets"),
    ("/v1/secrets/{name}", "put"): OperationNote("setSecret", "secrets", (*_BODY, "quota_exceeded", "owner_deleting")),
    ("/v1/secrets/{name}", "delete"): OperationNote("deleteSecret", "secrets", ("not_found",)),
    ("/v1/secret-key/rotate", "post"): OperationNote("rotateSecretKey", "secrets", ("not_set_up",)),
    ("/v1/jobs/{job_id}/secrets", "post"): OperationNote("readJobSecrets", "secrets", (*_JOB, "secret_missing")),
    ("/v1/tokens", "post"): OperationNote("createToken", "keys", _BODY),
    ("/v1/audit", "get"): OperationNote("listAudit", "keys"),
    ("/v1/notifications", "get"): OperationNote("listNotifications", "notifications"),
    ("/v1/notifications/test", "post"): OperationNote("testNotifications", "notifications"),
    ("/v1/session", "post"): OperationNote("startSession", "session", _BODY),
    ("/v1/session", "get"): OperationNote("getSession", "session"),
    ("/v1/session", "delete"): OperationNote("endSession", "session"),
    ("/v1/session/tickets", "post"): OperationNote("createSessionTicket", "session", ("not_set_up",)),
    ("/v1/owners", "get"): OperationNote("listOwners", "owners"),
    ("/v1/owners/{owner_id}", "get"): OperationNote("getOwner", "owners"),
    ("/v1/owners/{owner_id}", "delete"): OperationNote("deleteOwner", "owners", ("conflict",)),
    ("/v1/owners/{owner_id}/deletion", "get"): OperationNote("getOwnerDeletion", "owners", ("not_found",)),
    ("/livez", "get"): OperationNote("getLiveness", "health"),
    ("/readyz", "get"): OperationNote("getReadiness", "health"),
    ("/metrics", "get"): OperationNote("getMetrics", "health"),
}


def find_operation(path: str, method: str) -> OperationNote:
    """Return the note of an operation; a makeshift for one that the table lacks, which a test finds."""
    words = [word.strip("{}") for word in path.split("/") if word]
    return OPERATIONS.get((path, method)) or OperationNote(f"{method}_{'_'.join(words)}", "jobs")


def codes_of(path: str, method: str, *, needs_key: bool) -> Iterable[str]:
    """Return the codes that an operation may answer, without repetition."""
    common = (
        COMMON_CODES if needs_key else ("field_unknown", "unauthorized", "input_invalid", "internal", "unavailable")
    )
    return dict.fromkeys((*common, *find_operation(path, method).codes))


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


_RESUMES = "Resumes the stream after this event"

JOB_FIELDS: Final[dict[str, dict[str, FieldNote]]] = {
    "BatchRequest": {"jobs": _N("1 to 1,000 jobs")},
    "Batch": {"rejected": _N("The jobs that were refused")},
    "RejectedSubmission": {
        "index": _N("The position in the request, from 0", 1),
        "problem": _N("Why it was refused"),
    },
    "Eta": {
        "start_at": _N("When it should start; null: not known", EXAMPLE_TIME),
        "finish_at": _N("When it should end: the median; null: not known", EXAMPLE_LATER),
        "p90_finish_at": _N("By when nine of ten such jobs end; null: not known", EXAMPLE_LATER),
        "samples": _N("From how many earlier runs this is estimated", 14),
    },
    "OutputFile": {
        "name": _N("The name of the output", "result.mp4"),
        "url": _N("Where to fetch it without a key, for about an hour", "/v1/jobs/3c59/files/result.mp4?signature=…"),
    },
    "HistoryRow": {"event": _N("The event, with its `type`", {"type": "started"})},
    "JobProgram": {
        "image": _N("The image, as endpoint.toml names it; null under the process engine", "ghcr.io/ann/thumbnail:2"),
        "image_digest": _N(
            "Its digest at the registry, or the engine's id of an image built on the host", EXAMPLE_DIGEST
        ),
        "endpoint_digest": _N("The digest of the host's endpoint.toml", EXAMPLE_DIGEST),
    },
    "JobActionFailure": {"detail": _N("Why", "the job has ended")},
    "JobAction": {
        "state": _N("Whether it is done", "running"),
        "total": _N("How many jobs were found at the request", 40),
        "done": _N("How many jobs were changed", 12),
        "skipped": _N("How many jobs needed no change", 1),
        "failures": _N("The first 100 jobs that could not be changed"),
        "waits_for": _N("Why it does not go on at the moment; null: it does", None),
    },
    "JobActionRequest": {
        "ids": _N("The jobs, at most 1,000", [EXAMPLE_JOB_ID]),
        "filter": _N("Or the jobs that match this at the time of the request; null: those of `ids`"),
    },
    "JobActionRequestFilter": {
        "status": _N("In one of these states; empty: in any", ["queued"]),
        "endpoint": _N("Of this endpoint", "echo"),
        "code": _N("Failed with this code", "no_face"),
        "text": _N("With this text in the id, the input, a tag or the error", "order"),
        "created_from": _N("Created at this time or after it", EXAMPLE_TIME),
        "created_to": _N("Created before this time", EXAMPLE_LATER),
    },
    "JobError": {
        "code": _N("A code of docs/errors.md, or the image's own", "no_face"),
        "message": _N("What happened, for people", "no face was found in the video"),
        "blame": _N("Whose fault it is: `client`, `image`, `host` or `operator`", "client"),
        "retryable": _N("Whether a retry may succeed with the same request", False),
        "log_tail": _N("The last lines that it wrote to stderr", ["no face in frame 0"]),
    },
    "JobMetric": {
        "name": _N("The name of the number", "fps"),
        "value": _N("Its last value", 24.5),
        "unit": _N("Its unit; may be empty", "1/s"),
    },
    "JobUsage": {
        "queued_s": _N("Seconds from the queue to the start; null: not started", 31.6),
        "run_s": _N("Seconds of the last attempt; null: not ended", 9.1),
        "gpu_energy_j": _N("Energy of its GPUs in joules; null: not measured", None),
        "gpu_utilization": _N("Mean load of its GPUs in percent; null: not measured", None),
        "vram_peak_mb": _N("The most GPU memory that it used, in MiB; null: not measured", None),
        "cost": _N("What it cost in the currency of its host's price; null: no price", None),
    },
    "JobPage": {"jobs": _N("The jobs of this page")},
    "JobUrls": {
        "self": _N("The job", f"/v1/jobs/{EXAMPLE_JOB_ID}"),
        "events": _N("Its events", f"/v1/jobs/{EXAMPLE_JOB_ID}/events"),
        "cancel": _N("POST here to cancel it", f"/v1/jobs/{EXAMPLE_JOB_ID}/cancel"),
        "retry": _N("POST here to run it again", f"/v1/jobs/{EXAMPLE_JOB_ID}/retry"),
        "logs": _N("Its log", f"/v1/jobs/{EXAMPLE_JOB_ID}/logs"),
    },
    "Job": {
        "reason": _N("Why it waits, as a code of docs/errors.md; null: it does not wait", "behind"),
        "message": _N("What happens now, for people; null: there is nothing to say", "It is next in line"),
        "missing": _N("Digests of files that must be uploaded before it is queued", []),
        "queue_position": _N("How many jobs are ahead; 0: next in line; null: it does not wait in the queue", 0),
        "eta": _N("When it should start and end; null: not known"),
        "progress": _N("How far it is; null: it has not reported"),
        "output": _N("The result; null before it has one"),
        "error": _N("Why it failed; null: it has not"),
        "max_attempts": _N("How many attempts a round has", 3),
        "host": _N("The host of the last attempt; null before the first", "gpu-1"),
        "gpu": _N("The UUIDs of its GPUs, separated by commas; null: none", EXAMPLE_GPU),
        "engine": _N("What ran the last attempt: `docker` or `process`; null before the first", "docker"),
        "isolation": _N(
            "What isolated it: `runc`, `runsc`, `kata`, `bubblewrap`, or `process` for nothing; null: not told", "runc"
        ),
        "queued_at": _N("When it was queued; null before that", EXAMPLE_TIME),
        "started_at": _N("When the last attempt started; null before the first", EXAMPLE_TIME),
        "not_before": _N("Its earliest start; null: none", None),
        "deadline": _N("Its latest start; null: none", None),
        "usage": _N("What the last attempt used"),
        "metrics": _N("Numbers that the job reported of itself"),
        "urls": _N("Its own routes"),
    },
    "Submission": {
        "not_before": _N("The earliest start; null: at once", None),
        "deadline": _N("The latest start, with a time zone; null: none", "2099-01-01T00:00:00Z"),
        "await_input": _N("Accept the job although files are missing; the last upload queues it", False),
        "policy": _N("Limits; what is left out comes from the endpoint"),
    },
    "Policy": {
        "execution_timeout_s": _N("How many seconds an attempt may take", 600.0),
        "stall_timeout_s": _N("After how many silent seconds an attempt counts as stuck", 180.0),
        "start_timeout_s": _N("How many seconds it may wait for a host", 86_400.0),
        "max_attempts": _N("How many attempts a round has", 2),
        "input_timeout_s": _N("How many seconds its files may take to arrive", 1_800.0),
    },
    "Webhook": {
        "url": _N("The URL that is called with every state", "https://app.example.com/hook"),
        "events": _N("What is delivered: `state`", ["state"]),
    },
    "LogEvent": {
        "stream": _N("`stdout` or `stderr`", "stdout"),
        "text": _N("Whole lines of output", "step 1 of 10\n"),
    },
    "NoticeEvent": {
        "kind": _N("What happened to the host", "host_online"),
        "message": _N("The same for people", "The GPU host is on"),
    },
    "Output": {
        "files": _N("The output files"),
        "data": _N("The object that the image returned", {"text": "hi"}),
    },
    "StateEvent": {
        "id": _N(_RESUMES, "9f3c-17-12"),
        "event": _N("The kind of event", "state"),
    },
    "ProgressMessage": {
        "id": _N(_RESUMES, "9f3c-18-12"),
        "event": _N("The kind of event", "progress"),
    },
    "LogMessage": {
        "id": _N(_RESUMES, "9f3c-19-12"),
        "event": _N("The kind of event", "log"),
    },
    "NoticeMessage": {
        "id": _N(_RESUMES, "9f3c-19-12"),
        "event": _N("The kind of event", "notice"),
    },
}
