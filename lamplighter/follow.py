"""Following a job, without I/O: the parser of server-sent events, the reconnect budget and the follow state."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from lamplighter.api import JobFailed, LamplighterError
from schemas.backoff import Backoff
from schemas.job import FINAL_STATUSES, Status
from schemas.job_view import JobView

LONG_POLL_S = 30.0
RECONNECT_BACKOFF = Backoff(first_s=0.5, limit_s=2.0)
RECONNECT_TIMEOUT_S = 300.0  # since the last answer of an edge that has answered before


class Event(Struct, frozen=True):
    """One event of a job. `kind` is state, progress, log or notice; `id` resumes the stream after this event."""

    id: str
    kind: str
    data: dict[str, Any]

    @property
    def job(self) -> JobView:
        """The JobView of a `state` event."""
        return msgspec.convert(self.data, JobView)


class SseParser:
    """A parser of server-sent events (WHATWG HTML, section 9.2.6). `last_id` is the id of the last complete event."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.reset()

    def reset(self) -> None:
        """Start a new connection: forget the incomplete event of the one before, and its id."""
        self._rest, self._id = "", self.last_id
        self._kind, self._data = "message", list[str]()

    def read(self, text: str) -> Iterator[Event]:
        """Yield the events that a piece of the stream completes.

        Lines end only at line feeds: `str.splitlines`, which httpx2 uses, would split a log text at U+2028 or U+0085.
        """
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            yield from self.feed(line.removesuffix("\r"))

    def feed(self, line: str) -> Iterator[Event]:
        """Parse one line without its line feed; an empty line completes an event."""
        if line:
            self._field(*line.partition(":")[::2])
            return
        self.last_id = self._id
        if data := "\n".join(self._data):  # by the standard, an event without data is ignored
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


def long_poll_s(ends_at: float | None, job: JobView) -> float:
    """Return how long the next request for the job may wait. Raises TimeoutError at `ends_at` (monotonic seconds)."""
    if ends_at is None:
        return LONG_POLL_S
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        raise TimeoutError(f"job {job.id} is still {job.status}, and continues: wait for it again, or cancel it")
    return min(left_s, LONG_POLL_S)


def wait_end(timeout_s: float | None) -> float | None:
    """Return when a wait of `timeout_s` ends, in monotonic seconds; None for a wait without a limit."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def require_success(job: JobView) -> JobView:
    """Return `job`. Raises JobFailed if it ended otherwise."""
    if job.status in FINAL_STATUSES and job.status is not Status.SUCCEEDED:
        raise JobFailed(job)
    return job


class ReconnectBudget:
    """The time that a client has to reconnect to an edge, and the delay before the next try.

    Until the edge has answered once, there is no time. After that, it is RECONNECT_TIMEOUT_S from the first failure
    after an answer.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._was_connected = False
        self._silent_since: float | None = None

    def reset(self) -> None:
        """Record that the edge answered, so that the time starts again."""
        self._was_connected, self._silent_since, self._failures = True, None, 0

    def spend(self, error: LamplighterError) -> None:
        """Record that the edge did not answer. Raises `error` when the time is used up."""
        now = self._clock()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if not self._was_connected or now - self._silent_since >= RECONNECT_TIMEOUT_S:
            raise error
        self._failures += 1

    @property
    def delay_s(self) -> float:
        """The seconds to wait now: longer after each failure, and random, as all clients lose an edge at once."""
        return RECONNECT_BACKOFF.delay_s(max(0, self._failures - 1), self._jitter())


class FollowState:
    """The state of following one job over any number of connections."""

    def __init__(self, after: str | None) -> None:
        self.reader = SseParser(after)
        self.budget = ReconnectBudget()
        self.is_final = False
        self.has_events = False  # on this connection

    @property
    def headers(self) -> dict[str, str]:
        """The header that resumes after the last complete event."""
        return {"Last-Event-ID": self.reader.last_id} if self.reader.last_id else {}

    def start_connection(self) -> None:
        """Forget the state of the last connection, before the next one."""
        self.budget.reset()
        self.reader.reset()
        self.has_events = False

    def read(self, text: str) -> Iterator[Event]:
        """Yield the events that a piece of the stream completes."""
        for event in self.reader.read(text):
            self.has_events = True
            if event.kind == "state":
                self.is_final = event.data["status"] in FINAL_STATUSES
            yield event
