"""What a client may ask for, as a table: the type of its message to the function that answers it."""

from collections.abc import Awaitable, Callable, Mapping

from edge.facades.gateway.callers import Caller
from edge.facades.gateway.envelopes import answer, job_payload
from edge.facades.gateway.hall import Hall
from edge.facades.gateway.submits import submit
from edge.services import messages
from edge.services.inputs import invalid
from schemas.access import Scope
from schemas.asset import SCHEME
from schemas.envelope import DeletedPayload, Envelope, Kind, Message
from schemas.errors import FieldError, Refused
from schemas.job import JobKey
from schemas.words import is_token

Command = Callable[[Hall, Caller, Message], Awaitable[list[Envelope]]]

DELETE_TASK = "delete_asset"


async def _submit(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """A job, or what other `task_type`s mean."""
    act = _TASKS.get(message.task_type, submit)
    return await act(hall, caller, message)


async def _delete(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """Drop an asset at once; hosts drop it before they next take work. Wakes nobody."""
    caller.needs(Scope.ASSETS_WRITE)
    sha256 = message.payload.get("sha256")
    if not isinstance(sha256, str):
        raise invalid(FieldError("$.payload.sha256", "must name the asset"))
    try:
        deleted = await hall.parts.assets.delete(caller.owner, sha256.removeprefix(SCHEME).lower())
    except Refused as refused:
        if refused.code != "not_found":
            raise
        return [_not_there(hall, caller, message, sha256)]
    said = messages.DELETED.say(caller.language)
    result = {"sha256": deleted.sha256, "hosts_pending": deleted.hosts_pending, "message": said}
    return [answer(hall, message, Kind.RESULT, DeletedPayload(sha256=deleted.sha256, message=said), result=result)]


def _not_there(hall: Hall, caller: Caller, message: Message, sha256: str) -> Envelope:
    """Clients compare the text."""
    said = messages.DELETE_FAILED.say(caller.language)
    error = {"code": "not_found", "message": said}
    payload = DeletedPayload(sha256=sha256, message=said)
    return answer(hall, message, Kind.RESULT, payload, error=True, error_msg=said, result={"error": error})


def _key(caller: Caller, message: Message) -> JobKey:
    job_id = message.payload.get("job_id") or message.payload.get("code")
    if not isinstance(job_id, str) or not is_token(job_id):
        raise invalid(FieldError("$.payload.job_id", "a job id is 1 to 64 of A-Z a-z 0-9 _ -"))
    return JobKey(caller.owner, job_id)


async def _query(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """The job as it is."""
    caller.needs(Scope.JOBS_READ)
    entry = await hall.parts.intake.read(_key(caller, message))
    view = await hall.parts.viewer.job(entry, caller.asker)
    return [answer(hall, message, Kind.STATUS, job_payload(hall, view), result=view)]


async def _cancel(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """Stop it, waiting or running."""
    caller.needs(Scope.JOBS_WRITE)
    entry = await hall.parts.intake.cancel(_key(caller, message))
    view = await hall.parts.viewer.job(entry, caller.asker)
    return [answer(hall, message, Kind.STATUS, job_payload(hall, view), result=view)]


async def _hosts(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """Every known host, with the jobs of the caller's owner."""
    caller.needs(Scope.HOSTS_READ)
    hosts = hall.parts.power.views(hall.parts.hosts.views(caller.owner))
    online = any(host.state == "online" for host in hosts)
    return [answer(hall, message, Kind.HOSTS, {"online": online}, result={"hosts": hosts})]


async def _ping(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """The edge is there; what was sent along comes back."""
    del caller
    return [answer(hall, message, Kind.PONG, message.payload)]


_TASKS: Mapping[str, Command] = {DELETE_TASK: _delete}

COMMANDS: Mapping[str, Command] = {
    Kind.SUBMIT: _submit,
    Kind.QUERY: _query,
    Kind.CANCEL: _cancel,
    Kind.HOSTS: _hosts,
    Kind.PING: _ping,
}
