"""Turns every crash between two writes into a wait of seconds: a table of idempotent steps, walked again and again."""

from collections.abc import Sequence

import structlog
from anyio import sleep

from edge.services.fenced import fenced
from edge.services.repairs import STEPS, Step
from edge.services.scene import WEATHER, Scene

PERIOD_S = 15.0

_log = structlog.get_logger()


class Reconciler:
    """`run` walks the steps at once and then every `period_s` seconds; `sweep` walks them once."""

    def __init__(self, scene: Scene, steps: Sequence[Step] = STEPS, period_s: float = PERIOD_S) -> None:
        self._scene = scene
        self._steps = steps
        self._period_s = period_s

    async def run(self) -> None:
        """Without end, from when the index has caught up."""
        await self._scene.index.ready()
        while True:
            await self.sweep()
            await sleep(self._period_s)

    async def sweep(self) -> dict[str, int]:
        """How much each step mended; a step that could not be done is left for the next time."""
        mended = {}
        for step in self._steps:
            with fenced("step_broke", step=step.__name__):
                try:
                    mended[step.__name__] = await step(self._scene)
                except WEATHER as error:
                    _log.warning("step_put_off", step=step.__name__, error=str(error))
        if any(mended.values()):
            _log.info("reconciled", **{name: count for name, count in mended.items() if count})
        return mended
