"""`/v1/jobs/actions`: cancel, retry or delete many jobs, and follow how far that is."""

from typing import Annotated

from litestar import Response, post
from litestar.params import FromPath
from msgspec import Meta, Struct

from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, OwnerDep, ServicesDep, get_or_head
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from schemas.auth import Scope
from schemas.ids import Token, is_token
from schemas.installation import AuditAction
from schemas.job import Moment
from schemas.job_action import (
    ACTION_JOBS_LIMIT,
    JobAction,
    JobActionCounts,
    JobActionFailure,
    JobActionFilter,
    JobActionKind,
    JobActionState,
)
from schemas.problems import ProblemError


class JobActionRequestFilter(JobActionFilter, frozen=True, forbid_unknown_fields=True):
    """The jobs that an action is for, by the conditions of `GET /v1/jobs`. Empty: every job of the owner."""


class JobActionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """An action on many jobs: on those with `ids`, or on those that match `filter` at the time of the request."""

    action: JobActionKind
    ids: Annotated[tuple[Token, ...], Meta(max_length=ACTION_JOBS_LIMIT)] = ()
    filter: JobActionRequestFilter | None = None


class JobActionView(Struct, frozen=True, kw_only=True):
    """An action and its progress.

    `total`: the jobs that were found at the request. `done`: changed. `skipped`: nothing to change. `failures`: the
    first 100 of the `failed` jobs. `waits_for`: why it does not go on at the moment.
    """

    id: str
    action: JobActionKind
    state: JobActionState
    total: int
    done: int
    skipped: int
    failed: int
    failures: tuple[JobActionFailure, ...]
    waits_for: str | None
    requested_at: Moment
    finished_at: Moment | None


class JobActionListView(Struct, frozen=True):
    """The actions of the owner, newest first."""

    actions: list[JobActionView]


def _to_view(action: JobAction) -> JobActionView:
    counts: JobActionCounts = action.counts
    return JobActionView(
        id=action.id,
        action=action.kind,
        state=action.state,
        total=action.total,
        done=counts.done,
        skipped=counts.skipped,
        failed=counts.failed,
        failures=action.failures,
        waits_for=action.waits_for,
        requested_at=action.requested_at,
        finished_at=action.finished_at,
    )


@post(
    "/v1/jobs/actions",
    status_code=202,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=json_body(JobActionRequest),
)
async def start_job_action(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> Response[JobActionView]:
    """Cancel, retry or delete many jobs. The action is durable: it goes on after a restart of the edge."""
    body = await read_struct(request, JobActionRequest)
    services.quotas.check_not_deleting(owner)
    action = await services.job_actions.start(
        owner, body.action, request.auth.id, ids=body.ids, jobs_filter=body.filter
    )
    details = {"action": action.kind, "total": str(action.total), "conditions": " ".join(action.conditions)}
    await record_audit_event(request, services, AuditAction.JOB_ACTION_STARTED, action.id, owner=owner, details=details)
    return Response(_to_view(action), status_code=202, headers={"Location": f"/v1/jobs/actions/{action.id}"})


@get_or_head("/v1/jobs/actions", guards=[require_scope(Scope.JOBS_READ)])
async def list_job_actions(services: ServicesDep, owner: OwnerDep) -> JobActionListView:
    """List the actions of the last 30 days."""
    return JobActionListView([_to_view(action) for action in await services.job_actions.list(owner)])


@get_or_head("/v1/jobs/actions/{action_id:str}", guards=[require_scope(Scope.JOBS_READ)])
async def read_job_action(services: ServicesDep, owner: OwnerDep, action_id: FromPath[str]) -> JobActionView:
    """Return an action and its progress."""
    if not is_token(action_id):
        raise ProblemError("not_found", "there is no such action: GET /v1/jobs/actions lists them")
    return _to_view(await services.job_actions.read(owner, action_id))


ROUTES = (start_job_action, list_job_actions, read_job_action)
