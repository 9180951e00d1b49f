"""`/v1/owners`, `/v1/usage` and `/v1/secrets`: list and delete owners, report their usage, keep their secrets.

The value of a secret is written, and read only by the host of a job.
"""

from typing import Annotated

from litestar import Response, delete, get, post, put
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from edge.deletion import OwnerHoldings, OwnerSummary
from edge.http.auth import FOR_JOBS, require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head, parse_job_key, record_audit_event
from edge.http.openapi import json_body
from edge.http.request_input import read_struct
from edge.owners.secrets import SecretFacts
from schemas.credentials import ApiKey, Scope
from schemas.endpoint_parts import JobSecrets
from schemas.installation import AuditAction, OwnerDeletion
from schemas.job import Job, Moment, Status, is_token
from schemas.job_view import UsageReport
from schemas.problems import ProblemError


class OwnerListView(Struct, frozen=True):
    """The owners of the installation, by name."""

    owners: list[OwnerSummary]


def _check_owner(text: str) -> str:
    if not is_token(text):
        raise ProblemError("input_invalid", "an owner must have 1 to 64 characters of A-Z a-z 0-9 _ -")
    return text


@get_or_head("/v1/owners", guards=[require_scope(Scope.ADMIN)])
async def list_owners(services: ServicesDep) -> OwnerListView:
    """List the owners that have keys, jobs or files, or were deleted in the last 30 days."""
    return OwnerListView(list(await services.owners.list()))


@get_or_head("/v1/owners/{owner_id:str}", guards=[require_scope(Scope.ADMIN)])
async def read_owner(services: ServicesDep, owner_id: FromPath[str]) -> OwnerHoldings:
    """Count what an owner has, which is what a deletion deletes."""
    return await services.owners.count(_check_owner(owner_id))


@delete("/v1/owners/{owner_id:str}", status_code=202, guards=[require_scope(Scope.ADMIN)])
async def delete_owner(request: AnyRequest, services: ServicesDep, owner_id: FromPath[str]) -> OwnerDeletion:
    """Delete all data of an owner in the background, across restarts of the edge.

    Running jobs are cancelled first. New requests for this owner fail with 409 `owner_deleting` until the deletion is
    complete. A repeated request returns the same deletion.
    """
    key: ApiKey = request.auth
    if key.owner == _check_owner(owner_id):
        raise ProblemError("conflict", "this key belongs to that owner: use an admin key of another owner")
    deletion = await services.owner_deletions.start(owner_id, by=key.id)
    await record_audit_event(request, services, AuditAction.OWNER_DELETED, owner_id)
    return deletion


@get("/v1/owners/{owner_id:str}/deletion", guards=[require_scope(Scope.ADMIN)])
async def owner_deletion(services: ServicesDep, owner_id: FromPath[str]) -> OwnerDeletion:
    """Return the progress of a deletion and the number of deleted items. It is kept for 30 days."""
    return await services.owner_deletions.report(_check_owner(owner_id))


@get_or_head("/v1/usage", guards=[require_scope(Scope.JOBS_READ)])
async def read_usage(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    since: Annotated[Moment | None, QueryParameter(name="from")] = None,
    until: Annotated[Moment | None, QueryParameter(name="to")] = None,
) -> UsageReport:
    """Return the usage of the key's owner; for an admin key that of all owners, or of `?owner=`.

    Without `from` the report covers the last 30 days.
    """
    key: ApiKey = request.auth
    all_owners = Scope.ADMIN in key.scopes and "owner" not in request.query_params
    return await services.usage_reports.report(None if all_owners else owner, since, until)


_Installation = Annotated[bool, QueryParameter()]  # not the owner's secrets, but those of the installation
_STARTING = frozenset({Status.RUNNING, Status.CANCELLING})


class SecretRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The value of a secret, which no answer contains."""

    value: str


class StoredSecretView(Struct, frozen=True, kw_only=True):
    """A secret without its value. `owner`: None for one of the installation. `set_by`: the id of an API key."""

    name: str
    owner: str | None
    set_at: Moment
    set_by: str


class SecretListView(Struct, frozen=True):
    """Secrets by name, without their values."""

    secrets: list[StoredSecretView]


class SecretKeyRotationView(Struct, frozen=True, kw_only=True):
    """The keys of the edge that answered. `sealed`: how many secrets the first key seals. `file`: on the edge."""

    key_id: str
    old_key_ids: list[str]
    sealed: int
    file: str


def _to_secret_view(facts: SecretFacts) -> StoredSecretView:
    return StoredSecretView(name=facts.name, owner=facts.owner, set_at=facts.set_at, set_by=facts.set_by)


def _holder(key: ApiKey, owner: str, installation: bool) -> str | None:
    """Return the owner whose secrets a request is for; None for the installation's. Raises ProblemError."""
    if not installation:
        return owner
    if not key.allows(Scope.ADMIN):
        raise ProblemError("forbidden", "secrets of the installation need the scope admin: use a key that has it")
    return None


@get_or_head("/v1/secrets", guards=[require_scope(Scope.JOBS_READ)])
async def list_secrets(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, installation: _Installation = False
) -> SecretListView:
    """List the secrets of the owner, or of the installation, without their values."""
    found = await services.secrets.list(_holder(request.auth, owner, installation))
    return SecretListView([_to_secret_view(facts) for facts in found])


@put(
    "/v1/secrets/{name:str}",
    status_code=200,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=json_body(SecretRequest),
)
async def set_secret(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    name: FromPath[str],
    installation: _Installation = False,
) -> StoredSecretView:
    """Set a secret, in place of its earlier value. No answer of the API contains a value."""
    holder = _holder(request.auth, owner, installation)
    body = await read_struct(request, SecretRequest)
    if holder is not None:
        services.quotas.check_not_deleting(holder)
    facts = await services.secrets.set(holder, name, body.value, by=request.auth.id)
    await record_audit_event(request, services, AuditAction.SECRET_SET, name, owner=holder or "")
    return _to_secret_view(facts)


@delete("/v1/secrets/{name:str}", status_code=204, guards=[require_scope(Scope.JOBS_WRITE)])
async def delete_secret(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    name: FromPath[str],
    installation: _Installation = False,
) -> None:
    """Delete a secret. A waiting job that needs it fails when it starts; a running one keeps it."""
    holder = _holder(request.auth, owner, installation)
    await services.secrets.delete(holder, name)
    await record_audit_event(request, services, AuditAction.SECRET_DELETED, name, owner=holder or "")


@post("/v1/secret-key/rotate", status_code=200, guards=[require_scope(Scope.ADMIN)])
async def rotate_secret_key(
    request: AnyRequest, services: ServicesDep, finish: Annotated[bool, QueryParameter()] = False
) -> SecretKeyRotationView:
    """Seal all secrets with a new key. The old one stays in the key file and opens, until a call with `finish`."""
    secrets = services.secrets
    facts = await (secrets.finish_rotation() if finish else secrets.rotate_key())
    details = {"step": "finished" if finish else "started", "sealed": str(facts.sealed)}
    await record_audit_event(request, services, AuditAction.SECRET_KEY_ROTATED, facts.key_id, details=details)
    return SecretKeyRotationView(
        key_id=facts.key_id, old_key_ids=list(facts.old_key_ids), sealed=facts.sealed, file=facts.file
    )


@post(
    "/v1/jobs/{job_id:str}/secrets",
    status_code=200,
    guards=[require_scope(Scope.RUNNER)],
    opt={FOR_JOBS: True},
)
async def read_job_secrets(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, job_id: FromPath[str]
) -> Response[JobSecrets]:
    """Return the secrets of a job to the host that runs it. Only the key of that host may ask."""
    job = (await services.jobs.read(parse_job_key(owner, job_id))).record.job
    host = _require_holder(request.auth, job)
    endpoint = services.endpoints.find_offered(host, job.endpoint)
    if endpoint is None:
        raise ProblemError("unavailable", f"the edge does not know yet what {host} offers: try again")
    opened = await services.secrets.open_for_job(endpoint, owner)
    return Response(JobSecrets(dict(opened)), headers={"Cache-Control": "no-store"})


def _require_holder(key: ApiKey, job: Job) -> str:
    """Return the host that runs the job. Raises ProblemError `forbidden` if the key is that of another host."""
    if job.status not in _STARTING or job.claim is None or key.host not in {None, job.claim.host}:
        raise ProblemError("forbidden", "this host does not run the job: a runner's key may read only secrets of such")
    return job.claim.host


ROUTES = (
    list_owners,
    read_owner,
    delete_owner,
    owner_deletion,
    read_usage,
    list_secrets,
    set_secret,
    delete_secret,
    rotate_secret_key,
    read_job_secrets,
)
