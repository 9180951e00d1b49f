"""What the blocking and the awaiting client have in common: settings, local files, and when following is over."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lamplighter.errors import JobFailed, LamplighterError, Unreachable, rejected
from lamplighter.wire import Event, EventReader
from schemas.errors import Refused
from schemas.view import JobView
from schemas.words import FINAL, Status

LONG_POLL_S = 30.0
RECONNECT_AFTER_S = 1.0
PATIENCE_S = 300.0  # with an edge that was there and is silent, or that a proxy does not reach
TIMEOUT = httpx.Timeout(30.0, read=90.0)  # a stream says something every 15 s, a long poll answers within 60
CACHE = Path("~/.cache/lamplighter/digests.json")
UPLOADS = "uploads.json"  # beside it: uploads that were begun
PIECE = 1024 * 1024

Advance = Callable[[int], None]


def silent(_: int) -> None:
    """Nobody watches the progress."""


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise Unreachable(f"no answer from {url} ({why}): is the edge running, and is the address right?") from error


def key_headers(key: str | None) -> dict[str, str]:
    """The header that carries the key. Raises Unauthorized for a text that no header can carry."""
    if key and not (key.isascii() and key.isprintable()):
        why = "the key holds a character that no key has, a line end perhaps: copy it anew"
        raise rejected(Refused("unauthorized", why).problem)
    return {"Authorization": f"Bearer {key}"} if key else {}


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A file to write beside `target`, which becomes `target` at the end of the block; if that fails, none is left."""
    part = target.with_name(target.name + ".part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def local_files(given: Mapping[str, Any]) -> dict[str, Path]:
    """The inputs that may name a local file: a Path does, a text may when a file of that name is there."""
    found = {}
    for name, value in given.items():
        if isinstance(value, Path):
            found[name] = value
        elif isinstance(value, str) and names_file(value):
            found[name] = Path(value)
    return found


def names_file(text: str) -> bool:
    """Whether a file of that name is there; any text may be asked about, also one that no file can be called."""
    return os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises for a text of over 255 bytes


def named_as_text(given: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
    """Whether one of `files` is only a text: then the endpoint's schema must say that it is meant as a file."""
    return any(isinstance(given[name], str) for name in files)


def meant(given: Mapping[str, Any], files: Mapping[str, Path], schema: Mapping[str, Any]) -> dict[str, Path]:
    """Those of `files` that are: a text in a field that takes no file is a text, whatever lies in this folder.

    Otherwise a program that passes on what a stranger typed would upload the stranger's choice of its own files.
    """
    fields = schema.get("properties", {})
    return {
        name: path
        for name, path in files.items()
        if isinstance(given[name], Path) or fields.get(name, {}).get("format") == "asset"
    }


def asked(options: Mapping[str, Any] | None, await_input: bool, webhook: str | None) -> dict[str, Any]:
    """`options` of `wire.submit`, with what `submit` takes by name."""
    named = dict(options or {})
    body = dict(named.pop("options", None) or {})
    if await_input:
        body["await_input"] = True
    if webhook is not None:
        body["webhook"] = {"url": webhook}
    return named | {"options": body}


def successful(job: JobView) -> JobView:
    """`job`, or JobFailed when it ended otherwise."""
    if job.status in FINAL and job.status is not Status.SUCCEEDED:
        raise JobFailed(job)
    return job


class Patience:
    """How long an edge is waited for: not at all before it has answered once, then PATIENCE_S of silence in a row."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._met = False
        self._silent_since: float | None = None

    def heard(self) -> None:
        """It has answered."""
        self._met, self._silent_since = True, None

    def spend(self, error: LamplighterError) -> None:
        """It has not. Raises `error` when that is no more to be waited out."""
        now = self._clock()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if not self._met or now - self._silent_since >= PATIENCE_S:
            raise error


class Following:
    """One job followed over any number of connections: what to ask for next, and whether it is over."""

    def __init__(self, after: str | None) -> None:
        self.reader = EventReader(after)
        self.patience = Patience()
        self.final = False
        self.heard = False  # on this connection

    @property
    def headers(self) -> dict[str, str]:
        """What resumes behind the last event seen."""
        return {"Last-Event-ID": self.reader.last_id} if self.reader.last_id else {}

    def opened(self) -> None:
        """A new connection begins."""
        self.patience.heard()
        self.reader.opened()
        self.heard = False

    def read(self, text: str) -> Iterator[Event]:
        """The events that a piece of the stream completes."""
        for event in self.reader.read(text):
            self.heard = True
            if event.kind == "state":
                self.final = event.data["status"] in FINAL
            yield event
