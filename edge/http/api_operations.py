"""The operations of the API: for each route its operation id, its tag, and the codes of its refusals.

A test compares the table with the routes. Which codes every route has is in `COMMON_CODES`.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple


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
