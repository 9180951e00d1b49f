"""HTTP without the network: each request as a value, each answer read in one place. Both clients are built on it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from lamplighter.errors import LamplighterError, Unreachable, rejected
from schemas.asset import SCHEME
from schemas.asset import media_type as guess
from schemas.errors import Problem
from schemas.view import JobView
from schemas.words import Priority

T = TypeVar("T")


class Call(Struct, Generic[T], frozen=True, kw_only=True):
    """One request and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] | None = None
    headers: dict[str, str] = {}


class JobPage(Struct, frozen=True):
    """One page of jobs."""

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


class AssetPage(Struct, frozen=True):
    """One page of assets."""

    assets: list[Asset]
    next_cursor: str | None = None


class Check(Struct, frozen=True):
    """Which digests the server has."""

    present: list[str]
    missing: list[str]


class Event(Struct, frozen=True):
    """One thing said while following: `kind` is state, progress, log or notice; `id` resumes behind it."""

    id: str
    kind: str
    data: dict[str, Any]

    @property
    def job(self) -> JobView:
        """The Job of a `state` event."""
        return msgspec.convert(self.data, JobView)


def reader(kind: type[T]) -> Callable[[bytes], T]:
    """A reader of JSON answers; fields this version does not know are ignored."""
    return msgspec.json.Decoder(kind).decode


def nothing(_: bytes) -> None:
    """The reader of answers without a body."""


def plain(body: bytes) -> str:
    """The reader of text answers."""
    return body.decode(errors="replace")


read_job = reader(JobView)
read_asset = reader(Asset)
read_any: Callable[[bytes], Any] = msgspec.json.decode


def quoted(part: str) -> str:
    """One part of a path, whatever is in it."""
    return quote(part, safe="")


def job_path(job_id: str, *more: str) -> str:
    """The path of a job, or of something of it, whatever is in the names."""
    return "/".join(("/v1/jobs", *map(quoted, (job_id, *more))))


def submit(  # noqa: PLR0913 - the fields of the request body, PROTOCOLS 1
    endpoint: str,
    given: Mapping[str, Any],
    *,
    job_id: str | None = None,
    idempotency_key: str | None = None,
    priority: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Call[JobView]:
    """Submit a job. `options` are further fields of the body: not_before, deadline, policy, tags, trace_id, webhook."""
    body = {"endpoint": endpoint, "input": dict(given), **(options or {})}
    if priority is not None:
        body["priority"] = Priority(priority).value
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    method, path = ("PUT", job_path(job_id)) if job_id else ("POST", "/v1/jobs")
    return Call(method=method, path=path, read=read_job, body=body, headers=headers)


def job(job_id: str, wait_s: float = 0.0) -> Call[JobView]:
    """Read a job, holding the answer up to `wait_s` (at most 60) for its end."""
    params = (("wait", f"{wait_s:g}"),) if wait_s else ()
    return Call(method="GET", path=job_path(job_id), read=read_job, params=params)


def jobs(limit: int, cursor: str | None, filters: Mapping[str, str | None]) -> Call[JobPage]:
    """List jobs, newest first."""
    given = [(name, value) for name, value in filters.items() if value is not None]
    params = (("limit", str(limit)), *given, *((("cursor", cursor),) if cursor else ()))
    return Call(method="GET", path="/v1/jobs", read=reader(JobPage), params=params)


def act(job_id: str, verb: str) -> Call[JobView]:
    """`cancel` or `retry`."""
    return Call(method="POST", path=job_path(job_id, verb), read=read_job)


def delete(path: str) -> Call[None]:
    """Remove what is there."""
    return Call(method="DELETE", path=path, read=nothing)


def fetch(path: str, **params: str) -> Call[Any]:
    """Read a document as it is."""
    return Call(method="GET", path=path, read=read_any, params=tuple(params.items()))


def logs(job_id: str) -> Call[str]:
    """The job's log."""
    return Call(method="GET", path=job_path(job_id, "logs"), read=plain)


def check(digests: list[str]) -> Call[Check]:
    """Ask which assets are there."""
    return Call(method="POST", path="/v1/assets/check", read=reader(Check), body={"digests": digests})


def assets(limit: int, cursor: str | None) -> Call[AssetPage]:
    """List assets."""
    params = (("limit", str(limit)), *((("cursor", cursor),) if cursor else ()))
    return Call(method="GET", path="/v1/assets", read=reader(AssetPage), params=params)


def add_host(host: str) -> Call[Any]:
    """Let a machine join."""
    return Call(method="POST", path="/v1/hosts", read=read_any, body={"id": host})


def delete_asset(digest: str) -> Call[Any]:
    """Delete a file."""
    return Call(method="DELETE", path=f"/v1/assets/{quoted(digest)}", read=read_any)


def upload_headers(name: str, size: int) -> dict[str, str]:
    """What an upload says of its file; a name in another script travels percent-encoded."""
    return {"Content-Length": str(size), "X-Filename": quote(name)}


def already(sha256: str, name: str, size: int) -> Asset:
    """The asset that need not be uploaded."""
    return Asset(SCHEME + sha256, sha256, size, name, guess(name), None, f"/v1/assets/{sha256}")


def answered(call: Call[T], status: int, body: bytes) -> T:
    """The value of an answer. Raises Rejected for a refusal, Unreachable where it is no edge that answers."""
    if status >= 400:
        raise refusal(status, body)
    if status >= 300:
        raise Unreachable(f"{call.path} is elsewhere ({status}): give the address that it leads to, https and all")
    try:
        return call.read(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreachable(f"what answers {call.path} is no edge ({error}): is the address right?") from error


def refusal(status: int, body: bytes) -> LamplighterError:
    """The exception for an answer that is none of ours too: a proxy's page has no problem document."""
    try:
        return rejected(msgspec.json.decode(body, type=Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = " ".join(body[:200].decode(errors="replace").split())
        shown = Problem(type="about:blank", title="", status=status, detail=text or "no text", code=f"http_{status}")
        return rejected(shown)


class EventReader:
    """Server-sent events out of text (WHATWG HTML, section 9.2.6); `last_id` is that of the last whole event."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.opened()

    def opened(self) -> None:
        """A new connection: what the one before left half said is forgotten, its id too."""
        self._rest, self._id = "", self.last_id
        self._kind, self._data = "message", list[str]()

    def read(self, text: str) -> Iterator[Event]:
        """The events that a piece of the stream completes.

        Lines end at line feeds alone: `str.splitlines`, and httpx with it, would cut a log's text at U+2028 or U+0085.
        """
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            yield from self.feed(line.removesuffix("\r"))

    def feed(self, line: str) -> Iterator[Event]:
        """One line without its end; an empty one completes an event."""
        if line:
            self._field(*line.partition(":")[::2])
            return
        self.last_id = self._id
        if data := "\n".join(self._data):  # an event without data is none, says the standard
            yield Event(self.last_id or "", self._kind, msgspec.json.decode(data))
        self._kind, self._data = "message", []

    def _field(self, name: str, value: str) -> None:
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
