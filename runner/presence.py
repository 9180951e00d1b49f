"""The host speaks of itself: a heartbeat in HOSTS, which forgets, and an offer in OFFERS, which outlives the host."""

import anyio
from msgspec.structs import replace

from bus.port import BusError
from runner.enginewatch import EngineWatch
from runner.idleness import Idleness
from runner.life import Life
from runner.means import Means
from runner.readiness import Readiness
from runner.standby import Standby
from schemas.host import Offer, Presence

WHYS, WHY_CHARACTERS = 5, 300  # of what the runner waits for


class Announcer:
    """Says what is true now, every few seconds and whenever `hurry` is called."""

    def __init__(  # noqa: PLR0913, PLR0917 - each knows one part of what is said
        self, life: Life, means: Means, ready: Readiness, standby: Standby, idleness: Idleness, engine: EngineWatch
    ) -> None:
        self._life = life
        self._means = means
        self._engine = engine
        self._ready = ready
        self._idleness = idleness
        self._standby = standby
        self._since = life.now()
        self._hurried = anyio.Event()
        self._offered: Offer | None = None
        self.draining = False

    async def run(self) -> None:
        """Without end. While the broker is away HOSTS forgets this host, as it should."""
        while True:
            try:
                await self._life.bus.hosts.put(self._life.host, await self._presence())
                await self._offer()
            except BusError as error:
                self._life.away("announce", error)
            with anyio.move_on_after(self._life.pace.presence_s):
                await self._hurried.wait()
            self._hurried = anyio.Event()

    def hurry(self) -> None:
        """Say it now."""
        self._hurried.set()

    async def leave(self) -> None:
        """Nothing of this host runs any more: it need not be waited for."""
        await self._life.bus.hosts.delete(self._life.host)

    async def _presence(self) -> Presence:
        cannot = await self._ready.cannot(anew=True)
        return Presence(
            host=self._life.host,
            incarnation=self._life.incarnation,
            at=self._life.now(),
            since=self._since,
            draining=self.draining or self._ready.paused,
            slots=self._means.slots.count,
            engine=self._life.engine.name,
            engine_away=self._ready.engine_away,
            run_as=self._means.run_as,
            injection=self._engine.injection,
            gpu_state=self._means.cards.snapshot.state,
            gpus=self._means.cards.reports(),
            running=self._idleness.running(),
            busy=await self._idleness.busy(),
            warm=self._standby.reports(),
            waits=tuple(why[:WHY_CHARACTERS] for why in self._life.outage.whys[:WHYS]),
            cannot={name: str(reason) for name, reason in cannot.items()},
        )

    async def _offer(self) -> None:
        """Written when it says something else than the last one: endpoints, slots, which cards there are."""
        offer = Offer(
            host=self._life.host,
            incarnation=self._life.incarnation,
            at=self._since,
            endpoints=tuple(kind.endpoint for kind in self._means.kinds.values()),
            slots=self._means.slots.count,
            gpus=tuple(
                replace(card, memory_free_mb=None, temperature_c=None, utilization=None, power_w=None)
                for card in self._means.cards.reports()
            ),
        )
        if offer != self._offered:
            await self._life.bus.offers.put(self._life.host, replace(offer, at=self._life.now()))
            self._offered = offer
