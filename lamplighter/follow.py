"""TODO: lamplighter.follow."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from lamplighter.errors import JobFailed, LamplighterError
from schemas.job_view import JobView
from schemas.status import FINAL_STATUSES, Status


class Event(Struct, frozen=True):
    """One thing said while following: `kind` is state, progress, log or notice; `id` resumes behind it."""

    id: str
    kind: str
    data: dict[str, Any]

    @property
    def job(self) -> JobView:
        """The Job of a `state` event."""
        return msgspec.convert(self.data, JobView)


class SseParser:
    """Server-sent events out of text (WHATWG HTML, section 9.2.6); `last_id` is that of the last whole event."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.reset()

    def reset(self) -> None:
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


LONG_POLL_S = 30.0


RECONNECT_DELAY_S = 1.0


RECONNECT_TIMEOUT_S = 300.0  # with an edge that was there and is silent, or that a proxy does not reach


def require_success(job: JobView) -> JobView:
    """`job`, or JobFailed when it ended otherwise."""
    if job.status in FINAL_STATUSES and job.status is not Status.SUCCEEDED:
        raise JobFailed(job)
    return job


class ReconnectBudget:
    """How long an edge is waited for: not at all before it has answered once, then PATIENCE_S of silence in a row."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._was_connected = False
        self._silent_since: float | None = None

    def reset(self) -> None:
        """It has answered."""
        self._was_connected, self._silent_since = True, None

    def spend(self, error: LamplighterError) -> None:
        """It has not. Raises `error` when that is no more to be waited out."""
        now = self._clock()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if not self._was_connected or now - self._silent_since >= RECONNECT_TIMEOUT_S:
            raise error


class FollowState:
    """One job followed over any number of connections: what to ask for next, and whether it is over."""

    def __init__(self, after: str | None) -> None:
        self.reader = SseParser(after)
        self.budget = ReconnectBudget()
        self.is_final = False
        self.has_events = False  # on this connection

    @property
    def headers(self) -> dict[str, str]:
        """What resumes behind the last event seen."""
        return {"Last-Event-ID": self.reader.last_id} if self.reader.last_id else {}

    def start_connection(self) -> None:
        """A new connection begins."""
        self.budget.reset()
        self.reader.reset()
        self.has_events = False

    def read(self, text: str) -> Iterator[Event]:
        """The events that a piece of the stream completes."""
        for event in self.reader.read(text):
            self.has_events = True
            if event.kind == "state":
                self.is_final = event.data["status"] in FINAL_STATUSES
            yield event
