"""A card that erred takes no work until a container has run well on it: this starts that container.

It is an endpoint's own image there. One that can be started ahead is: loading its model and saying `ready` proves
more than a test of ours could. For the others nvidia-smi, which the container toolkit brings along, opens the card.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
from msgspec.structs import replace

from runner.attempt import spec_of
from runner.cards import Holding
from runner.catalogue import Kind
from runner.engines.port import WARM_ENV, Engine, EngineError, Identity, Spec
from runner.life import Life
from runner.means import Means
from runner.pause import Pause
from runner.spare import PREFIX
from schemas.container import LineParser, Ready

COMMAND = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


class Prover:
    """Looks for such cards, one at a time; after a failure each waits twice as long as before."""

    def __init__(self, life: Life, means: Means) -> None:
        self._life = life
        self._means = means
        self._kind = probing(means)
        self._pauses: defaultdict[str, Pause] = defaultdict(Pause)
        self._numbers = count(1)

    async def run(self) -> None:
        """Without end; at once where no endpoint uses cards, as then nobody could tell."""
        if self._kind is None:
            return
        while True:
            for uuid in self._means.cards.suspects():
                if not self._pauses[uuid].lasts(anyio.current_time()):
                    await self._prove(uuid, self._kind)
            await anyio.sleep(self._life.pace.idle_s)

    async def _prove(self, uuid: str, kind: Kind) -> None:
        cards, pause, policy = self._means.cards, self._pauses[uuid], self._means.cards.settings.probe
        holding = cards.hold((uuid,), kind.endpoint)
        try:
            why = await self._probed(kind, holding)
        finally:
            holding.release()
        if holding.xid is not None:
            why = f"XID {holding.xid} while it was probed"
        if not why:
            pause.clear()
            cards.proved(uuid)
            self._life.log.info("card proved", gpu=uuid)
            return
        pause.fail(why, anyio.current_time(), policy.first_s, policy.most_s)
        cards.erred((uuid,), f"its probe failed: {why}")
        self._life.log.warning("card not proved", gpu=uuid, why=why)

    async def _probed(self, kind: Kind, holding: Holding) -> str:
        """Run one container on the card; why it did not do well, or ""."""
        spec = probe_spec(self._life, kind, holding.uuids, f"probe-{next(self._numbers)}")
        spec = replace(spec, env={WARM_ENV: "1"}, instead=()) if kind.endpoint.warm else spec
        return await probed(self._life, spec, holding.waits, self._means.cards.settings.probe.patience_s)


async def probed(life: Life, spec: Spec, started: Callable[[str], Awaitable[object]], patience_s: float) -> str:
    """Run this container until it is ready or ends; why it did not do well, or "". Nothing of it is left."""
    folder, handle = life.jobs / spec.identity.folder, None
    try:
        await anyio.to_thread.run_sync(partial((folder / "job").mkdir, parents=True))
        handle = await life.engine.start(spec)
        await started(handle)
        with anyio.fail_after(patience_s):
            return await _well(life.engine, handle)
    except TimeoutError:
        return f"no answer within {patience_s:.0f} s"
    except (EngineError, OSError) as error:
        return str(error)
    finally:
        if handle is not None:
            await life.steadily("remove", partial(life.engine.remove, handle))
        await life.erase(folder)


async def _well(engine: Engine, handle: str) -> str:
    """Ready, or ended with 0: ""."""
    parser = LineParser("stdout")
    async with aclosing(engine.output(handle, None)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            if chunk.stream == "stdout":
                for parsed in parser.feed(chunk.data, chunk.mark.offset - len(chunk.data)):
                    if isinstance(parsed.message, Ready):
                        return ""
    ended = await engine.wait(handle)
    return "" if ended.code == 0 else f"the container ended with code {ended.code}"


def probing(means: Means) -> Kind | None:
    """The kind whose image probes: one that can be started ahead, if there is one."""
    using = [kind for kind in means.kinds.values() if kind.endpoint.resources.gpus]
    return max(using, key=lambda kind: kind.endpoint.warm, default=None)


def probe_spec(life: Life, kind: Kind, uuids: tuple[str, ...], name: str) -> Spec:
    """A container of this kind's image that opens these cards and ends."""
    folder = f"{PREFIX}{life.incarnation}-{name}"
    mine = Identity(installation=life.installation, host=life.host, spare=folder)
    return replace(spec_of(kind, mine, (life.jobs / folder / "job").resolve(), uuids), instead=COMMAND)
