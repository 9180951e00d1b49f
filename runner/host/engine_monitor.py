"""Engine monitor: probes the engine at the start, every few seconds, and at once after a call went unanswered.

While the engine does not answer, the host reports it and claims nothing: jobs wait in the queue, for this host or
another one. Running jobs are followed again as soon as the engine is back. No other engine replaces it.
"""

from collections.abc import Awaitable, Callable

import anyio

from runner.claiming.schedulability import HostState
from runner.context import RunnerContext
from runner.engines.port import DetectedInjection, EngineError

FIRST_PROBE_TIMEOUT_S = 2.0  # the first heartbeat waits this long for the engine
PROBE_TIMEOUT_S = 20.0

PrepareEngine = Callable[[], Awaitable[DetectedInjection | None]]


class EngineMonitor:
    """Monitors the engine. `prepare` is called once, at its first answer; `injection` is the result."""

    def __init__(self, context: RunnerContext, state: HostState, prepare: PrepareEngine) -> None:
        self._context = context
        self._state = state
        self._prepare = prepare
        self._answered = anyio.Event()
        self._notes: tuple[str, ...] = ()  # limits that the engine does not enforce
        self.injection: DetectedInjection | None = None

    async def probe_once(self) -> None:
        """Probe once with a short timeout, so that the first heartbeat is right."""
        self._set_away(await self._probe(FIRST_PROBE_TIMEOUT_S))

    async def wait_until_ready(self) -> None:
        """Wait until the engine has answered once and is prepared."""
        await self._answered.wait()

    async def run(self) -> None:
        """Probe forever. An engine that is away is probed with a growing pause."""
        failures = 0
        while True:
            suspicion = self._context.outage.engine_suspected.next_notification()
            reason = await self._probe(PROBE_TIMEOUT_S)
            if reason is None and not self._answered.is_set():
                self.injection = await self._prepare()
                reason = await self._probe(PROBE_TIMEOUT_S)  # if the engine went away, the preparation proves nothing
                if reason is None:
                    self._answered.set()
                    for note in self._notes:
                        self._context.log.warning(
                            "engine_limitation_found", engine=self._context.engine.name, note=note
                        )
            self._set_away(reason)
            if reason is None:
                failures = 0
                with anyio.move_on_after(self._context.intervals.engine_s):
                    await suspicion.wait()
            else:
                await anyio.sleep(self._context.intervals.retry_backoff.delay_s(failures))
                failures += 1

    async def _probe(self, timeout_s: float) -> str | None:
        """Return why the engine does not answer, or None."""
        try:
            with anyio.fail_after(timeout_s):
                engine = await self._context.engine.probe()
            self._notes = engine.notes
            self._state.set_engine(engine)
        except (EngineError, TimeoutError) as error:
            return str(error) or f"silent for {timeout_s:.0f} s"
        return None

    def _set_away(self, reason: str | None) -> None:
        """Record whether the engine answers, and log a change."""
        if not self._state.set_engine_away(reason):
            return
        if reason is None:
            self._context.log.info("engine_recovered", engine=self._context.engine.name)
        else:
            self._context.log.warning("engine_lost", engine=self._context.engine.name, error=reason)
