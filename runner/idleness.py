"""What keeps this host busy: executions, outputs on their way, people who are logged in, other people's programs."""

import anyio.to_thread

from runner.cards import Cards
from runner.execution import Phase
from runner.logins import Logins
from runner.roster import Roster
from runner.slots import Slots
from schemas.host import Busy, Running


class Idleness:
    """`settled` is set once what earlier lives left has been looked at: before that nobody knows what is unsaved."""

    def __init__(self, slots: Slots, cards: Cards, logins: Logins, roster: Roster) -> None:
        self._slots = slots
        self._cards = cards
        self._logins = logins
        self._roster = roster
        self.settled = False

    def running(self) -> tuple[Running, ...]:
        """The executions."""
        return self._roster.running()

    async def busy(self) -> Busy:
        """Now. People are counted in a thread: the files that name them are read anew each time."""
        users = await anyio.to_thread.run_sync(self._logins)
        executions = self._roster.there.values()
        return Busy(
            uploading=sum(execution.phase is not Phase.RUNNING for execution in executions),
            unsaved=len(self._slots.poisoned) + (not self.settled),
            programs=len(self._cards.foreign()),
            users=len(users),
        )

    def empty(self) -> bool:
        """Whether no execution is here, and none is missing."""
        return self.settled and not self._roster.there and not self._slots.poisoned
