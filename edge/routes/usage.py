"""`GET /v1/usage`: jobs, GPU seconds, energy, money and the hosts' hours, in a range of time."""

from typing import Annotated

from litestar.params import QueryParameter

from edge.auth.keys import needs
from edge.routes.given import AnyRequest, Owner, Services, get_or_head
from schemas.access import ApiKey, Scope
from schemas.job import Moment
from schemas.usage import UsageReport


@get_or_head("/v1/usage", guards=[needs(Scope.JOBS_READ)])
async def read_usage(
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    since: Annotated[Moment | None, QueryParameter(name="from")] = None,
    until: Annotated[Moment | None, QueryParameter(name="to")] = None,
) -> UsageReport:
    """The key's owner's; with an admin key everybody's, or those of `?owner=`. Without `from` the last 30 days."""
    key: ApiKey = request.auth
    everybody = Scope.ADMIN in key.scopes and "owner" not in request.query_params
    return await parts.usage.report(None if everybody else owner, since, until)


ROUTES = (read_usage,)
