"""Reading a stream in order: one ephemeral consumer that pushes to our inbox, watched by its own count and heartbeat.

It never mends itself. On a gap, a silence or a broken connection it raises Broken, and whoever reads opens anew behind
what was given last: nats-py's ordered consumer stays silent after a restart of the broker.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import anyio
from nats.aio.msg import Msg

from bus.acks import handed
from bus.jetstream import Answer, JetStream
from bus.port import BusError, Denied, Unreachable
from bus.wire import status

SECOND = 10**9
HEARTBEAT_S = 5
SILENCE_S = 2.5 * HEARTBEAT_S
INACTIVE_S = 30
AGAIN_S = 0.1


class Broken(Unreachable):
    """This consumer gives nothing more: open another one."""


class Reading(NamedTuple):
    """What to read: behind a sequence (0: from the start), or what was stored since a moment, or the last of every
    subject; bodies or headers only."""

    stream: str
    subjects: str
    behind: int = 0
    last_per_subject: bool = False
    headers_only: bool = False
    since: datetime | None = None


class Item(NamedTuple):
    """A message. `pending` more match behind it; `at` is when it was stored, in ns."""

    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    at: int
    pending: int


class _Made(Answer, frozen=True):
    name: str = ""
    num_pending: int = 0


class Consumer:
    """`pending`: how many messages matched when it was opened."""

    def __init__(self, js: JetStream, name: str, pending: int, inbox: asyncio.Queue[Msg | BusError]) -> None:
        self.name = name
        self.pending = pending
        self._js = js
        self._inbox = inbox
        self._step = 0

    async def next(self) -> Item:
        """The next message. Raises Broken; Denied when the user may not listen."""
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):  # a cancel scope costs four times as much, a message each
                    message = await self._inbox.get()
            except TimeoutError as error:
                raise Broken(f"consumer {self.name} is silent: not even a heartbeat in {SILENCE_S} s") from error
            if isinstance(message, Denied):
                raise message
            if isinstance(message, BusError):
                raise Broken(str(message)) from message
            if status(message):
                await self._control(message)
            else:
                return self._item(message)

    def _item(self, message: Msg) -> Item:
        got = handed(message.reply)
        self._step += 1
        if got is None or got.step != self._step:
            raise Broken(f"consumer {self.name} lost messages before step {got.step if got else '?'}")
        return Item(got.sequence, message.subject, message.data, message.headers or {}, got.at, got.pending)

    async def _control(self, message: Msg) -> None:
        """Answer flow control, once what came before it was read; judge a heartbeat's count."""
        headers = message.headers or {}
        if headers.get("Status") != "100":
            raise Broken(f"consumer {self.name} ended: {headers.get('Description')}")
        if int(headers.get("Nats-Last-Consumer", self._step)) > self._step:
            raise Broken(f"consumer {self.name} lost messages behind step {self._step}")
        stalled = message.reply or headers.get("Nats-Consumer-Stalled")
        if stalled:
            await self._js.wire.say(stalled)


def _config(reading: Reading, inbox: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "deliver_subject": inbox,
        "filter_subject": reading.subjects,
        "deliver_policy": "all",
        "headers_only": reading.headers_only,
        "ack_policy": "none",
        "max_deliver": 1,
        "mem_storage": True,
        "num_replicas": 1,
        "flow_control": True,
        "idle_heartbeat": HEARTBEAT_S * SECOND,
        "inactive_threshold": INACTIVE_S * SECOND,
    }
    if reading.last_per_subject:
        config["deliver_policy"] = "last_per_subject"
    elif reading.since:
        config |= {"deliver_policy": "by_start_time", "opt_start_time": reading.since.astimezone(UTC).isoformat()}
    elif reading.behind:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": reading.behind + 1}
    return config


@asynccontextmanager
async def opened(js: JetStream, reading: Reading) -> AsyncIterator[Consumer]:
    """A consumer, deleted at the end. Raises what the API raises."""
    messages: asyncio.Queue[Msg | BusError] = asyncio.Queue()
    inbox = js.wire.private_subject()
    name = inbox.replace(".", "-")
    async with js.wire.listening(inbox, messages.put_nowait):
        body = {"stream_name": reading.stream, "config": {"name": name, **_config(reading, inbox)}}
        verb = f"CONSUMER.CREATE.{reading.stream}.{name}.{reading.subjects}"
        made = await js.api(verb, body, _Made)
        try:
            yield Consumer(js, name, made.num_pending, messages)
        finally:
            await _forget(js, f"$JS.API.CONSUMER.DELETE.{reading.stream}.{name}")


async def _forget(js: JetStream, subject: str) -> None:
    """Not waited for: a consumer that nobody listens to goes by itself after 30 s."""
    with anyio.CancelScope(shield=True):
        try:
            await js.wire.say(subject)
        except Unreachable:
            return


async def held(js: JetStream, reading: Reading) -> list[Item]:
    """All that matches now, oldest first. Raises Broken when the connection breaks meanwhile."""
    items: list[Item] = []
    async with opened(js, reading) as consumer:
        pending = consumer.pending
        while pending:
            item = await consumer.next()
            items.append(item)
            pending = item.pending
    return items


async def until_back(js: JetStream) -> None:
    """Wait for the connection after a break, and a moment for a broker that is still starting."""
    await anyio.sleep(AGAIN_S)
    await js.wire.up()
