"""`/v1/secrets`: secrets for the programs of jobs. A value is written, and read only by the host of a job."""

from typing import Annotated

from litestar import Response, delete, post, put
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from edge.http.auth import FOR_JOBS, record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head, parse_job_key
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from edge.owners.secrets import SecretFacts
from schemas.auth import ApiKey, Scope
from schemas.installation import AuditAction
from schemas.job import Job, Moment
from schemas.job_environment import JobSecrets
from schemas.problems import ProblemError
from schemas.status import Status

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


def _to_view(facts: SecretFacts) -> StoredSecretView:
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
    return SecretListView([_to_view(facts) for facts in found])


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
    return _to_view(facts)


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
    list_secrets,
    set_secret,
    delete_secret,
    rotate_secret_key,
    read_job_secrets,
)
