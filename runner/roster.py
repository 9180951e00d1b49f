"""The executions of this life, by job and round: launched here, found here, their slots and cards given back here."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from bus.port import Delivery
from runner.attempt import Ticket
from runner.execution import Execution
from runner.life import Life
from runner.slots import Permit
from schemas.host import Running
from schemas.job import JobKey

Ended = Callable[[Execution], None]


class Place(NamedTuple):
    """One round of one job: there is one execution for it at a time."""

    key: JobKey
    round: int


class Roster:
    """Executions run in `tasks`. `ended` is told of each that came to its end."""

    def __init__(self, life: Life, tasks: TaskGroup, ended: Ended) -> None:
        self._life = life
        self._tasks = tasks
        self._ended = ended
        self._there: dict[Place, Execution] = {}
        self._changed = anyio.Event()

    @property
    def there(self) -> Mapping[Place, Execution]:
        """Everything that runs, or has not been cleared away."""
        return self._there

    def rounds(self, key: JobKey) -> set[int]:
        """The rounds of a job that are here."""
        return {place.round for place in self._there if place.key == key}

    def launch(self, ticket: Ticket, permit: Permit, delivery: Delivery | None) -> None:
        """Let it run. `permit` and the ticket's cards are given back when it has ended."""
        execution = Execution(self._life, ticket, delivery, partial(self._free, ticket, permit))
        place = Place(ticket.job.key, ticket.job.round)
        if place in self._there:
            raise RuntimeError(f"{place} runs already")
        self._there[place] = execution
        self._tasks.start_soon(self._run, place, execution, permit)

    def running(self) -> tuple[Running, ...]:
        """As the host's presence shows them."""
        jobs = [execution.ticket.job for execution in self._there.values()]
        return tuple(Running(job.owner, job.id, job.endpoint, job.round, job.attempt) for job in jobs)

    def _free(self, ticket: Ticket, permit: Permit) -> None:
        """Give back what was not given back yet."""
        ticket.holding.release()
        if permit.held:
            permit.idle()

    async def until(self, gone: Callable[[Mapping[Place, Execution]], bool]) -> None:
        """Wait until `gone` holds of what is there."""
        while not gone(self._there):
            await self._changed.wait()

    async def _run(self, place: Place, execution: Execution, permit: Permit) -> None:
        """A bug in one execution ends that one: what became of its container is found out by the sweep."""
        try:
            await execution.run()
        except Exception:
            self._life.log_of(execution.ticket.job).exception("execution failed")
            permit.poisoned(place.key)
        else:
            self._ended(execution)
        finally:
            self._free(execution.ticket, permit)
            del self._there[place]
            self._changed.set()
            self._changed = anyio.Event()
