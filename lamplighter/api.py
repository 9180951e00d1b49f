"""The HTTP API as values, without I/O: each request, the decoder of its answer, and the exception for a refusal.

Both clients use it. The types of answers stand after the exceptions, then jobs, assets, hosts, usage, keys and owners.

LamplighterError
├── Unreachable      no answer from the server (exit 3 on the command line)
├── Rejected         the server refused: `.problem` says why (exit 4)
│   ├── NotFound     404
│   ├── Unauthorized 401 and 403
│   ├── Conflict     409: the resource is not in the state that the request needs
│   └── Busy         429, 502, 503, 504 and 507: the same request may succeed later
├── TrustInvalid     `ca` or `pin` cannot be used; nothing was sent (exit 2)
└── JobFailed        the job ended without success: `.job` has the error (exit 1)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct, structs

from schemas.asset import DIGEST_SCHEME
from schemas.asset import guess_media_type as guess
from schemas.host import HostView
from schemas.job import Priority
from schemas.job_view import JobView, UsageReport
from schemas.problems import Problem

T = TypeVar("T")


class LamplighterError(Exception):
    """Base class of the exceptions of this package."""


class Unreachable(LamplighterError):
    """The server did not answer. Whether a submit was accepted is unknown: submit again with the same key."""


class TrustInvalid(LamplighterError):
    """`ca` or `pin` cannot be used. The message says what to correct."""


class Rejected(LamplighterError):
    """The server refused the request; nothing was written."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        named = (f"{error.path}: {error.message}" for error in problem.errors)
        more = "".join(f"; {field}" for field in named if field != problem.detail)
        super().__init__(f"{problem.code}: {problem.detail}{more}")


class NotFound(Rejected):
    """The resource does not exist, or belongs to another owner."""


class Unauthorized(Rejected):
    """The key is not valid, or lacks a scope."""


class Conflict(Rejected):
    """The resource is not in the state that the request needs: it has ended, is in use, or differs."""


class Busy(Rejected):
    """A limit is reached, or a part of the server is full or unavailable. The same request may succeed later."""


class JobFailed(LamplighterError):
    """The job ended as failed, cancelled or expired."""

    def __init__(self, job: JobView) -> None:
        self.job = job
        why = f"{job.error.code}: {job.error.message}" if job.error else job.message or "no reason was recorded"
        super().__init__(f"job {job.id} {job.status}: {why}")


ERRORS_BY_STATUS: dict[int, type[Rejected]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    429: Busy,
    502: Busy,
    503: Busy,
    504: Busy,
    507: Busy,
}


def error_from_problem(problem: Problem) -> Rejected:
    """Return the exception for a problem document."""
    return ERRORS_BY_STATUS.get(problem.status, Rejected)(problem)


class ApiRequest(Struct, Generic[T], frozen=True, kw_only=True):
    """One request and the decoder of its answer."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] | None = None
    headers: dict[str, str] = {}


class JobList(Struct, frozen=True):
    """A page of the list of jobs. `next_cursor` fetches the next page; None on the last."""

    jobs: list[JobView]
    next_cursor: str | None = None


class Asset(Struct, frozen=True):
    """An uploaded file; `digest` is what a job's input takes."""

    digest: str
    sha256: str
    bytes: int
    name: str
    media_type: str
    created_at: str | None
    url: str


class AssetList(Struct, frozen=True):
    """A page of the list of assets. `next_cursor` fetches the next page; None on the last."""

    assets: list[Asset]
    next_cursor: str | None = None


class AssetCheck(Struct, frozen=True):
    """The answer to a check of digests: which ones the edge has."""

    present: list[str]
    missing: list[str]


def json_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Return a decoder of JSON answers. It ignores fields that this release does not know."""
    return msgspec.json.Decoder(kind).decode


def ignore_body(_: bytes) -> None:
    """Decode an answer without a body."""


def decode_text(body: bytes) -> str:
    """Decode an answer in plain text."""
    return body.decode(errors="replace")


decode_job = json_decoder(JobView)
decode_asset = json_decoder(Asset)
decode_json: Callable[[bytes], Any] = msgspec.json.decode


def quote_segment(part: str) -> str:
    """Quote one segment of a path, whatever characters it contains."""
    return quote(part, safe="")


def job_path(job_id: str, *more: str) -> str:
    """Return the path of a job, or of a resource below it, whatever characters the names contain."""
    return "/".join(("/v1/jobs", *map(quote_segment, (job_id, *more))))


def submit_job(  # noqa: PLR0913 - the fields of the request
    endpoint: str,
    inputs: Mapping[str, Any],
    *,
    job_id: str | None = None,
    idempotency_key: str | None = None,
    priority: str | None = None,
    traceparent: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ApiRequest[JobView]:
    """Submit a job. `traceparent`: the parent of the job's spans, as in W3C Trace Context.

    `options` are further fields of the body: not_before, deadline, policy, tags, trace_id, webhook."""
    body = {"endpoint": endpoint, "input": dict(inputs), **(options or {})}
    if priority is not None:
        body["priority"] = Priority(priority).value
    given = {"Idempotency-Key": idempotency_key, "traceparent": traceparent}
    headers = {name: value for name, value in given.items() if value}
    method, path = ("PUT", job_path(job_id)) if job_id else ("POST", "/v1/jobs")
    return ApiRequest(method=method, path=path, read=decode_job, body=body, headers=headers)


def get_job(job_id: str, wait_s: float = 0.0) -> ApiRequest[JobView]:
    """Read a job. The edge holds its answer for up to `wait_s` (at most 60) until the job ends."""
    params = (("wait", f"{wait_s:g}"),) if wait_s else ()
    return ApiRequest(method="GET", path=job_path(job_id), read=decode_job, params=params)


def list_jobs(limit: int, cursor: str | None, filters: Mapping[str, str | None]) -> ApiRequest[JobList]:
    """List jobs, newest first, one page from `cursor` on."""
    active = [(name, value) for name, value in filters.items() if value is not None]
    params = (("limit", str(limit)), *active, *((("cursor", cursor),) if cursor else ()))
    return ApiRequest(method="GET", path="/v1/jobs", read=json_decoder(JobList), params=params)


def post_job_action(job_id: str, verb: str) -> ApiRequest[JobView]:
    """Cancel or retry a job; `verb` says which."""
    return ApiRequest(method="POST", path=job_path(job_id, verb), read=decode_job)


def delete_path(path: str, **params: str) -> ApiRequest[None]:
    """Delete the resource at `path`. A query in `path` would be lost: `params` has its parameters."""
    return ApiRequest(method="DELETE", path=path, read=ignore_body, params=tuple(params.items()))


def get_json(path: str, **params: str) -> ApiRequest[Any]:
    """Read a JSON document without a type."""
    return ApiRequest(method="GET", path=path, read=decode_json, params=tuple(params.items()))


def test_notifications() -> ApiRequest[Any]:
    """Let the edge send a test message to each of its targets."""
    return ApiRequest(method="POST", path="/v1/notifications/test", read=decode_json)


def add_webhook(url: str, endpoints: Sequence[str], states: Sequence[str]) -> ApiRequest[Any]:
    """Add a webhook for the final states of all jobs of the key's owner."""
    body = {"url": url, "endpoints": list(endpoints), "states": list(states)}
    return ApiRequest(method="POST", path="/v1/webhooks", read=decode_json, body=body)


def list_secrets(*, owner: str | None, installation: bool) -> ApiRequest[Any]:
    """List secrets without their values: of `owner` (None: the key's), or of the installation."""
    return _secret_request("GET", "", owner, installation)


def set_secret(name: str, value: str, *, owner: str | None, installation: bool) -> ApiRequest[Any]:
    """Set a secret, in place of its earlier value."""
    return _secret_request("PUT", name, owner, installation, {"value": value})


def delete_secret(name: str, *, owner: str | None, installation: bool) -> ApiRequest[None]:
    """Delete the secret `name` of an owner or of the installation."""
    return structs.replace(_secret_request("DELETE", name, owner, installation), read=ignore_body)


def rotate_secret_key(*, finish: bool) -> ApiRequest[Any]:
    """Seal all secrets with a new key, or `finish`: remove the old one from the key file."""
    params = (("finish", "true"),) if finish else ()
    return ApiRequest(method="POST", path="/v1/secret-key/rotate", read=decode_json, params=params)


def _secret_request(
    method: str, name: str, owner: str | None, installation: bool, body: dict[str, Any] | None = None
) -> ApiRequest[Any]:
    query = {"owner": owner, "installation": "true" if installation else None}
    params = tuple((key, value) for key, value in query.items() if value is not None)
    path = f"/v1/secrets/{quote_segment(name)}" if name else "/v1/secrets"
    return ApiRequest(method=method, path=path, read=decode_json, params=params, body=body)


def webhook_path(webhook_id: str, *more: str) -> str:
    """Return the path of an owner-wide webhook, or of a resource below it."""
    return "/".join(("/v1/webhooks", *map(quote_segment, (webhook_id, *more))))


def test_webhook(webhook_id: str) -> ApiRequest[Any]:
    """Let the edge send a test message to an owner-wide webhook."""
    return ApiRequest(method="POST", path=webhook_path(webhook_id, "test"), read=decode_json)


def get_log(job_id: str) -> ApiRequest[str]:
    """Read the log of a job as plain text."""
    return ApiRequest(method="GET", path=job_path(job_id, "logs"), read=decode_text)


def check_assets(digests: list[str]) -> ApiRequest[AssetCheck]:
    """Ask the edge which of `digests` it has."""
    return ApiRequest(method="POST", path="/v1/assets/check", read=json_decoder(AssetCheck), body={"digests": digests})


def list_assets(limit: int, cursor: str | None) -> ApiRequest[AssetList]:
    """List assets, one page from `cursor` on."""
    params = (("limit", str(limit)), *((("cursor", cursor),) if cursor else ()))
    return ApiRequest(method="GET", path="/v1/assets", read=json_decoder(AssetList), params=params)


def add_host(host: str) -> ApiRequest[Any]:
    """Create the join token of a host."""
    return ApiRequest(method="POST", path="/v1/hosts", read=decode_json, body={"id": host})


def create_host_token(uses: int, ttl_s: float, **terms: Any) -> ApiRequest[Any]:
    """Create a join token that many hosts share. `terms`: prefix, pool and keep; a term of None is left out."""
    body = {"uses": uses, "ttl_s": ttl_s, **{name: value for name, value in terms.items() if value is not None}}
    return ApiRequest(method="POST", path="/v1/host-tokens", read=decode_json, body=body)


def add_relay(relay: str) -> ApiRequest[Any]:
    """Create the join token of a relay."""
    return ApiRequest(method="POST", path="/v1/relays", read=decode_json, body={"id": relay})


def delete_asset(digest: str) -> ApiRequest[Any]:
    """Delete an asset of the key's owner."""
    return ApiRequest(method="DELETE", path=f"/v1/assets/{quote_segment(digest)}", read=decode_json)


def known_asset(sha256: str, name: str, size: int) -> Asset:
    """Return the asset of a file that the edge has already."""
    return Asset(DIGEST_SCHEME + sha256, sha256, size, name, guess(name), None, f"/v1/assets/{sha256}")


def parse_response(call: ApiRequest[T], status: int, body: bytes) -> T:
    """Decode an answer. Raises Rejected for a refusal, and Unreachable if the answer is not an edge's."""
    if status >= 400:
        raise error_from_response(status, body)
    if status >= 300:
        raise Unreachable(f"{call.path} was redirected ({status}): use the address of the redirect, with its https")
    try:
        return call.read(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreachable(f"{call.path} was not answered by an edge ({error}): is the address right?") from error


def error_from_response(status: int, body: bytes) -> LamplighterError:
    """Return the exception for a refusal. A proxy's page has no problem document, so its text becomes the detail."""
    try:
        return error_from_problem(msgspec.json.decode(body, type=Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = " ".join(body[:200].decode(errors="replace").split())
        shown = Problem(type="about:blank", title="", status=status, detail=text or "no text", code=f"http_{status}")
        return error_from_problem(shown)


class BatchRejection(Struct, frozen=True):
    """A job that was not accepted: its position in the batch, from 0, and the reason."""

    index: int
    problem: Problem


class Batch(Struct, frozen=True):
    """The result of a batch: the jobs that are stored now, and those that were rejected."""

    accepted: list[JobView]
    rejected: list[BatchRejection]


def submit_batch(jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> ApiRequest[Batch]:
    """Submit up to 1000 jobs, each a body of `POST /v1/jobs`."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    body = {"jobs": [dict(job) for job in jobs]}
    return ApiRequest(method="POST", path="/v1/batches", read=json_decoder(Batch), body=body, headers=headers)


class HostList(Struct, frozen=True):
    """The hosts that the edge knows."""

    hosts: list[HostView]


def get_endpoint(name: str) -> ApiRequest[Any]:
    """Read one endpoint with its input schema."""
    return get_json(f"/v1/endpoints/{quote_segment(name)}")


def list_hosts() -> ApiRequest[HostList]:
    """List the hosts that the edge knows."""
    return ApiRequest(method="GET", path="/v1/hosts", read=json_decoder(HostList))


def set_power(host: str, want: str, until: str | None) -> ApiRequest[HostView]:
    """Keep a host `on` or `off`, or end the override with `auto`."""
    body = {"want": want, **({"until": until} if until else {})}
    return ApiRequest(
        method="POST", path=f"/v1/hosts/{quote_segment(host)}/power", read=json_decoder(HostView), body=body
    )


def start_maintenance(host: str) -> ApiRequest[HostView]:
    """Keep a host from starting jobs, and power rules from switching it, until `end_maintenance`."""
    return ApiRequest(method="POST", path=f"/v1/hosts/{quote_segment(host)}/maintenance", read=json_decoder(HostView))


def end_maintenance(host: str) -> ApiRequest[HostView]:
    """End the maintenance of a host."""
    return ApiRequest(method="DELETE", path=f"/v1/hosts/{quote_segment(host)}/maintenance", read=json_decoder(HostView))


def set_endpoint_pause(name: str, verb: Literal["pause", "resume"]) -> ApiRequest[Any]:
    """Pause or resume the endpoint `name` on all hosts."""
    return ApiRequest(method="POST", path=f"/v1/endpoints/{quote_segment(name)}/{verb}", read=decode_json)


def get_usage(since: str | None, until: str | None, owner: str | None) -> ApiRequest[UsageReport]:
    """Read the usage between two times (RFC 3339)."""
    query = (("from", since), ("to", until), ("owner", owner))
    params = tuple((name, value) for name, value in query if value is not None)
    return ApiRequest(method="GET", path="/v1/usage", read=json_decoder(UsageReport), params=params)


def create_key(owner: str, scopes: list[str], **fields: str | None) -> ApiRequest[Any]:
    """Create a key. `fields` are name, language and expires_at. Needs the scope admin, as do all requests below."""
    known = {name: value for name, value in fields.items() if value is not None}
    body: dict[str, Any] = {"owner": owner, **known, **({"scopes": scopes} if scopes else {})}
    return ApiRequest(method="POST", path="/v1/keys", read=decode_json, body=body)


def create_sign_in_ticket() -> ApiRequest[Any]:
    """Create a ticket that signs one browser in to the console with the rights of this key."""
    return ApiRequest(method="POST", path="/v1/session/tickets", read=decode_json)


def rotate_key(key_id: str, grace_s: float) -> ApiRequest[Any]:
    """Give a key a new secret. The old secret stays valid for `grace_s`."""
    return ApiRequest(
        method="POST", path=f"/v1/keys/{quote_segment(key_id)}/rotate", read=decode_json, body={"grace_s": grace_s}
    )


def delete_owner(owner: str) -> ApiRequest[Any]:
    """Start the deletion of all data of an owner."""
    return ApiRequest(method="DELETE", path=f"/v1/owners/{quote_segment(owner)}", read=decode_json)


def get_owner_deletion(owner: str) -> ApiRequest[Any]:
    """Read the progress of an owner's deletion."""
    return get_json(f"/v1/owners/{quote_segment(owner)}/deletion")


def submit_options(
    options: Mapping[str, Any] | None, await_input: bool, webhook: str | None, tags: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return the arguments of `submit_job` for the keyword arguments of `Client.submit`."""
    named = dict(options or {})
    body = dict(named.pop("options", None) or {})
    if await_input:
        body["await_input"] = True
    if webhook is not None:
        body["webhook"] = {"url": webhook}
    if tags is not None:
        body["tags"] = dict(tags)
    return named | {"options": body}
