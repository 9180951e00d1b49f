"""The fields of jobs, of what is submitted, and of the events of jobs: see `api_fields`."""

from typing import Final

from edge.http.api_common_fields import (
    EXAMPLE_DIGEST,
    EXAMPLE_GPU,
    EXAMPLE_JOB_ID,
    EXAMPLE_LATER,
    EXAMPLE_TIME,
    FieldNote,
)

_N = FieldNote
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
