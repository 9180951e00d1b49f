"""`/v1/owners`: deleting a whole owner, and the report of that. Scope admin."""

from typing import Annotated

from litestar import delete, get
from litestar.params import FromPath, QueryParameter

from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head
from schemas.auth import ApiKey, Scope
from schemas.ids import is_token
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.owner_deletion import OwnerDeletion
from schemas.problems import ProblemError
from schemas.usage import UsageReport


def _check_owner(text: str) -> str:
    if not is_token(text):
        raise ProblemError("input_invalid", "an owner is 1 to 64 of A-Z a-z 0-9 _ -")
    return text


@delete("/v1/owners/{owner_id:str}", status_code=202, guards=[require_scope(Scope.ADMIN)])
async def delete_owner(request: AnyRequest, parts: ServicesDep, owner_id: FromPath[str]) -> OwnerDeletion:
    """Delete everything of an owner. It goes on by itself, over restarts; asked again it is the same deletion.

    Until it is done nothing new of that owner is taken (409 `owner_deleting`); what runs is cancelled first.
    """
    key: ApiKey = request.auth
    if key.owner == _check_owner(owner_id):
        raise ProblemError("conflict", "this key is that owner's own: use another owner's admin key")
    begun = await parts.owner_deletions.start(owner_id, by=key.id)
    await record_audit_event(request, parts, AuditAction.OWNER_DELETED, owner_id)
    return begun


@get("/v1/owners/{owner_id:str}/deletion", guards=[require_scope(Scope.ADMIN)])
async def owner_deletion(parts: ServicesDep, owner_id: FromPath[str]) -> OwnerDeletion:
    """How far the deletion is, and what went; kept for 30 days."""
    return await parts.owner_deletions.report(_check_owner(owner_id))


# MERGED edge/routes/usage.py: `GET /v1/usage`: jobs, GPU seconds, energy, money and the hosts' hours, in a range of
# time.


@get_or_head("/v1/usage", guards=[require_scope(Scope.JOBS_READ)])
async def read_usage(
    request: AnyRequest,
    parts: ServicesDep,
    owner: OwnerDep,
    since: Annotated[Moment | None, QueryParameter(name="from")] = None,
    until: Annotated[Moment | None, QueryParameter(name="to")] = None,
) -> UsageReport:
    """The key's owner's; with an admin key everybody's, or those of `?owner=`. Without `from` the last 30 days."""
    key: ApiKey = request.auth
    everybody = Scope.ADMIN in key.scopes and "owner" not in request.query_params
    return await parts.usage_reports.report(None if everybody else owner, since, until)


ROUTES = (
    delete_owner,
    owner_deletion,
    read_usage,
)
