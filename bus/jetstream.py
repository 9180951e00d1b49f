"""The few requests of the JetStream API that we make, as its own JSON: nats-py's objects drop unknown fields."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import anyio
import msgspec
from msgspec import Struct
from nats.aio.msg import Msg

from bus.errors import InProcess, Missing, answered
from bus.port import BusError, Unreachable
from bus.wire import ANSWER_S, Wire, status
from schemas.events import RUBBISH

AGREED_S = 0.01  # three servers agree on a write in 2 to 3 ms

S = TypeVar("S", bound="Answer")


class ApiError(Struct, frozen=True):
    """`err_code` names the error; `description` is for people."""

    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True):
    """Every answer of the API may be an error."""

    error: ApiError | None = None


class Stored(Struct, frozen=True):
    """A message as the leader holds it; `data` and `hdrs` come in base64."""

    subject: str
    seq: int
    data: bytes = b""
    hdrs: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """Its headers; the first line is the protocol's own."""
        lines = self.hdrs.decode(errors="replace").splitlines()[1:]
        return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


class _Got(Answer, frozen=True):
    message: Stored | None = None


class _PubAck(Answer, frozen=True):
    seq: int = 0


class SourceInfo(Struct, frozen=True):
    """How far a stream has come with one of its sources."""

    name: str
    seq: int = 0


class State(Struct, frozen=True):
    """What a stream holds; `subjects` only where they were asked for."""

    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class Kept(Struct, frozen=True):
    """The part of a stream's configuration that the installation chooses: on how many servers it is kept."""

    num_replicas: int = 1


class StreamInfo(Answer, frozen=True):
    """The parts of STREAM.INFO that are used here. `created` names this life of the stream, to the nanosecond."""

    config: Kept = Kept()
    created: str = ""
    state: State = State()
    sources: tuple[SourceInfo, ...] = ()
    total: int = 0


class JetStream:
    """Raises the port's errors."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def api(self, verb: str, body: Mapping[str, Any], kind: type[S], within_s: float = ANSWER_S) -> S:
        """Ask `$JS.API.<verb>`."""
        subject = f"$JS.API.{verb}"
        return accepted(subject, await self.wire.request(subject, msgspec.json.encode(body), within_s=within_s), kind)

    async def finish(self, verb: str, subject: str, within_s: float) -> None:
        """Say to `subject` that all was sent of what `verb` asked for; return when the broker has taken it in."""
        accepted(verb, await self.wire.request(subject, within_s=within_s), Answer)

    async def write(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        message_id: str | None = None,
        marker: bool = False,
    ) -> int:
        """Publish and return the sequence, once stored (and synced).

        Said again while a cluster still agrees on it, it is asked for until that is over, 5 s at most.
        `expect`: the last sequence of the subject, 0 for none, else Conflict. `message_id` seen before: stored once.
        """
        headers = {
            name: value
            for name, value in (
                ("Nats-Expected-Last-Subject-Sequence", None if expect is None else str(expect)),
                ("Nats-Msg-Id", message_id),
                ("KV-Operation", "DEL" if marker else None),
            )
            if value is not None
        }
        ends = anyio.current_time() + ANSWER_S
        while True:
            try:
                return await self._store(subject, data, headers)
            except InProcess:
                if anyio.current_time() >= ends:
                    raise
            await anyio.sleep(AGREED_S)

    async def _store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        message = await self.wire.request(subject, data, headers)
        if status(message):
            raise Unreachable(f"{subject}: no stream takes it; the broker is starting, or the edge has not been there")
        ack = _read(subject, message, _PubAck)
        if ack.error is not None:
            raise answered(subject, ack.error.err_code, ack.error.description)
        return ack.seq

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject, from the leader; `subject` may hold wildcards."""
        return await self._get(stream, {"last_by_subj": subject})

    async def next(self, stream: str, subject: str, sequence: int) -> Stored | None:
        """The first message of a subject at or behind `sequence`, from the leader."""
        return await self._get(stream, {"seq": sequence, "next_by_subj": subject})

    async def _get(self, stream: str, which: Mapping[str, Any]) -> Stored | None:
        try:
            return (await self.api(f"STREAM.MSG.GET.{stream}", which, _Got)).message
        except Missing:
            return None

    async def info(self, stream: str) -> StreamInfo:
        """The state of a stream."""
        return await self.api(f"STREAM.INFO.{stream}", {}, StreamInfo)

    async def subjects(self, stream: str, pattern: str) -> set[str]:
        """Every subject that holds a message."""
        return set(await self.counts(stream, pattern))

    async def counts(self, stream: str, pattern: str) -> dict[str, int]:
        """How many messages each subject holds that holds one, page by page (the broker gives 100,000 at once)."""
        found: dict[str, int] = {}
        while True:
            page = await self.api(
                f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(found)}, StreamInfo
            )
            held = page.state.subjects or {}
            found.update(held)
            if not held or len(found) >= page.total:
                return found

    async def erase(self, stream: str, subject: str, below: int | None = None) -> int:
        """Overwrite and remove every message of `subject` (under `below`); how many there were.

        A purge would leave the bytes on disk, and so does an acknowledgement, or a limit of the stream.
        """
        at, erased = 1, 0
        while (found := await self.next(stream, subject, at)) and (below is None or found.seq < below):
            await self.overwrite(stream, found.seq)
            at, erased = found.seq + 1, erased + 1
        return erased

    async def overwrite(self, stream: str, sequence: int) -> None:
        """Erase one message; nothing happens when it is gone."""
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence}, Answer)
        except Missing:
            return


def accepted(subject: str, message: Msg, kind: type[S]) -> S:
    """What JetStream answered. Raises Unreachable where nobody did, and the port's error for its error."""
    if status(message):
        raise Unreachable(f"{subject}: JetStream does not answer yet")
    answer = _read(subject, message, kind)
    if answer.error is not None:
        raise answered(subject, answer.error.err_code, answer.error.description)
    return answer


def _read(subject: str, message: Msg, kind: type[S]) -> S:
    """Return the decoded answer. Raises BusError where the bytes are not an answer of this kind."""
    try:
        return msgspec.json.decode(message.data, type=kind)
    except RUBBISH as error:
        raise BusError(f"{subject}: the broker answered something that is not JetStream's JSON ({error})") from error


def moment_ns(created: str) -> int:
    """The broker's `created` as one number: its digits, since nanoseconds do not fit a datetime. Raises BusError."""
    whole, _, fraction = created.rstrip("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
        return seconds * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
    except (ValueError, OverflowError) as error:
        raise BusError(f"the broker says that a stream was created at {created[:40]!r}, which is not a time") from error
