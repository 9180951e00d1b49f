"""The outbox of webhooks as a port: every state once past some edge, every letter kept until it is done with."""

from typing import Protocol, TypeVar

from msgspec import Struct

from schemas.events import Recorded

T_co = TypeVar("T_co", covariant=True)


class Letter(Struct, frozen=True):
    """One state of a job on its way to its webhook. `replay`: how many times it was sent anew on request."""

    revision: int
    recorded: Recorded
    replay: int = 0


class Held(Protocol[T_co]):
    """Something handed out to one edge. It comes again after a minute unless it is done or put off."""

    @property
    def value(self) -> T_co:
        """What it is."""
        ...

    async def done(self) -> None:
        """Gone for good."""
        ...

    async def later(self, delay_s: float) -> None:
        """Hand it out again in `delay_s`, over a restart of the broker too."""
        ...


class Outbox(Protocol):
    """DELIVERIES, and the one place from which all edges together read STATE for it."""

    async def judge(self) -> Held[Letter | None] | None:
        """The next state that no edge has judged, None when there is none now; None in it: a deletion, or rubbish.

        It reads on from where the first edge of the installation began, each state handed to one edge.
        """
        ...

    async def post(self, letter: Letter) -> None:
        """Keep it until it is done. Twice is once, within minutes. Raises StoreFull."""
        ...

    async def take(self) -> Held[Letter] | None:
        """The next letter that is due, at once or None."""
        ...

    async def withdraw(self, owner: str, job_id: str | None = None) -> int:
        """Erase every letter of the job, or of all the owner's, whoever holds it; how many there were."""
        ...
