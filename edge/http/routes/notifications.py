"""`/v1/notifications`: the conditions for which operators get messages, and a test of the targets."""

from litestar import get, post
from msgspec import Struct

from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, ServicesDep
from edge.notify.service import TargetResult
from schemas.auth import Scope
from schemas.conditions import Notice
from schemas.installation import AuditAction
from schemas.job import Moment


class NoticeView(Struct, frozen=True, kw_only=True):
    """A condition that holds. `pending`: the targets that were not told yet."""

    condition: str
    subject: str
    values: dict[str, str]
    began_at: Moment
    pending: list[str]


class NotificationsView(Struct, frozen=True):
    """The conditions that hold, newest first, and the names of the targets."""

    notices: list[NoticeView]
    targets: list[str]


class NotificationTest(Struct, frozen=True):
    """The outcome of a test for each target."""

    results: list[TargetResult]


def _to_view(notice: Notice) -> NoticeView:
    return NoticeView(
        condition=notice.condition,
        subject=notice.subject,
        values=notice.values,
        began_at=notice.began_at,
        pending=sorted(notice.pending),
    )


@get("/v1/notifications", guards=[require_scope(Scope.ADMIN)])
async def list_notifications(services: ServicesDep) -> NotificationsView:
    """List the conditions that hold and that a target gets. Without targets, no condition is checked."""
    notices = await services.notifications.open_notices()
    return NotificationsView([_to_view(notice) for notice in notices], sorted(services.notifications.targets))


@post("/v1/notifications/test", status_code=200, guards=[require_scope(Scope.ADMIN)])
async def send_test_message(request: AnyRequest, services: ServicesDep) -> NotificationTest:
    """Send a test message to each target, and return which were sent and why others were not."""
    results = list(await services.notifications.send_test())
    details = {result.target: "sent" if result.sent else result.error or "" for result in results}
    await record_audit_event(request, services, AuditAction.NOTIFICATIONS_TESTED, "", details=details)
    return NotificationTest(results)


ROUTES = (list_notifications, send_test_message)
