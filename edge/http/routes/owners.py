"""`/v1/owners` and `/v1/usage`: list and delete owners, and report jobs, GPU seconds, energy and cost."""

from typing import Annotated

from litestar import delete, get
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head
from edge.owners.directory import OwnerHoldings, OwnerSummary
from schemas.auth import ApiKey, Scope
from schemas.ids import is_token
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.owner_deletion import OwnerDeletion
from schemas.problems import ProblemError
from schemas.usage import UsageReport


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


ROUTES = (
    list_owners,
    read_owner,
    delete_owner,
    owner_deletion,
    read_usage,
)
