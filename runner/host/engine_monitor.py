"""Whether the engine answers: asked at the start, every few seconds, and at once when a call to it went unanswered.

While it does not answer, the host says so and claims nothing: jobs wait in the queue, for this host or another one.
What runs already is followed again as soon as the engine is back. No other engine takes its place.
"""

from collections.abc import Awaitable, Callable

import anyio

from runner.claiming.schedulability import Schedulability
from runner.context import RunnerContext
from runner.engines.port import DetectedInjection, EngineError

FIRST_PROBE_TIMEOUT_S = 2.0  # the host is announced after this, whether the engine has answered by then or not
PROBE_TIMEOUT_S = 20.0

PrepareEngine = Callable[[], Awaitable[DetectedInjection | None]]


class EngineMonitor:
    """`prepare` is called once, when the engine answers for the first time; `injection` is what it answered."""

    def __init__(self, life: RunnerContext, ready: Schedulability, prepare: PrepareEngine) -> None:
        self._context = life
        self._schedulability = ready
        self._prepare = prepare
        self._answered = anyio.Event()
        self._notes: tuple[str, ...] = ()  # what the engine does not keep
        self.injection: DetectedInjection | None = None

    async def probe_once(self) -> None:
        """Ask once, with little patience, so that the host's first word tells the truth."""
        self._set_away(await self._probe(FIRST_PROBE_TIMEOUT_S))

    async def wait_until_ready(self) -> None:
        """Wait until the engine has answered once and is prepared."""
        await self._answered.wait()

    async def run(self, changed: Callable[[], None]) -> None:
        """Ask without end, and call `changed` when the engine goes or comes back. One that is away is asked again with
        a growing pause.
        """
        pace, wait = self._context.intervals, 0.0
        while True:
            why = await self._probe(PROBE_TIMEOUT_S)
            if why is None and not self._answered.is_set():
                self.injection = await self._prepare()
                why = await self._probe(PROBE_TIMEOUT_S)  # what was tried on an engine that went away proves nothing
                if why is None:
                    self._answered.set()
                    for note in self._notes:
                        self._context.log.warning("engine", engine=self._context.engine.name, note=note)
            if self._set_away(why):
                changed()
            if why is None:
                wait = 0.0
                with anyio.move_on_after(pace.engine_s):
                    await self._context.outage.engine_suspected.wait()
                self._context.outage.engine_suspected = anyio.Event()
            else:
                wait = min(wait * 2, pace.retry_most_s) or pace.retry_least_s
                await anyio.sleep(wait)

    async def _probe(self, patience_s: float) -> str | None:
        """Why the engine does not answer, or None."""
        try:
            with anyio.fail_after(patience_s):
                self._notes = (await self._context.engine.probe()).notes
        except (EngineError, TimeoutError) as error:
            return str(error) or f"silent for {patience_s:.0f} s"
        return None

    def _set_away(self, why: str | None) -> bool:
        """Whether that is news."""
        before, self._schedulability.engine_away = self._schedulability.engine_away, why
        if (before is None) == (why is None):
            return False
        if why is None:
            self._context.log.info("engine answers again", engine=self._context.engine.name)
        else:
            self._context.log.warning("engine away, jobs wait", engine=self._context.engine.name, why=why)
        return True
