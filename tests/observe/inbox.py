"""A receiver of notifications: which conditions operators were told of, and of which of them that they have ended."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from string import Formatter

from msgspec import Struct
from starlette.responses import Response

from edge.notify.conditions import CONDITION_TEXTS
from schemas.installation import Condition
from tests.support.webhook_receiver import WebhookReceiver, run_receiver

NAMES = [name for name in CONDITION_TEXTS if name in set(Condition)]


def _pattern(condition: str) -> str:
    """Return a pattern for the English line about a condition. Its group `subject` is what the line is about."""
    parts = []
    for text, name, _, _ in Formatter().parse(CONDITION_TEXTS[condition].en):
        parts += [re.escape(text), {None: "", "subject": "(?P<subject>.+)"}.get(name, ".+")]
    return rf"\[(?P<what>critical|warning|resolved after .+)\] {''.join(parts)}"


PATTERNS = {Condition(name): re.compile(_pattern(name)) for name in NAMES}


class Inbox(Struct, frozen=True):
    """The messages that arrived at a target of Apprise's kind json://."""

    receiver: WebhookReceiver

    @property
    def url(self) -> str:
        """The address as Apprise writes it."""
        return self.receiver.url.replace("http://files.test", "json://127.0.0.1")

    def lines(self) -> Iterator[str]:
        """Yield the lines of all messages, in order."""
        for message in self.receiver.got:
            yield from json.loads(message.body)["message"].splitlines()

    def open_conditions(self) -> set[tuple[Condition, str]]:
        """Return the conditions, with their subjects, that were told and of which no end was told."""
        told: set[tuple[Condition, str]] = set()
        for line in self.lines():
            for condition, pattern in PATTERNS.items():
                if found := pattern.fullmatch(line):
                    key = (condition, found.groupdict().get("subject", ""))
                    (told.discard if found["what"].startswith("resolved") else told.add)(key)
        return told


@asynccontextmanager
async def run_inbox() -> AsyncIterator[Inbox]:
    """Receive notifications while the block runs."""
    async with run_receiver(lambda _: Response(status_code=200)) as receiver:
        yield Inbox(receiver)
