"""How the engine gives cards to containers on this host: each way is tried at start with a container that lists them.

Which one works depends on the toolkit, its mode and Docker's age (research/runner.md 1.5): nothing tells but trying.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

from runner.engines.sandbox import Injection, Way
from runner.life import Life
from runner.means import Means
from runner.proving import probe_spec, probed, probing

WAYS: Mapping[Injection | Literal["auto"], tuple[Injection, ...]] = {
    "auto": ("cdi", "device_request", "runtime"),
    "cdi": ("cdi",),
    "device_request": ("device_request",),
    "runtime": ("runtime",),
}
PATIENCE_S = 60.0


class Injecting(Protocol):
    """An engine that knows several ways."""

    def inject(self, way: Injection) -> None:
        """Give cards to containers in this way from now on."""
        ...


async def choose(life: Life, means: Means, engine: Injecting) -> Way | None:
    """Have `engine` use the first way that works, and say so; None where there is no card, or nothing uses one."""
    kind = probing(means)
    uuids = tuple(sample.uuid for sample in means.cards.snapshot.samples)
    if kind is None or not uuids:
        return None
    failures = {}
    for way in WAYS[means.cards.settings.injection]:
        engine.inject(way)
        why = await probed(life, probe_spec(life, kind, uuids, f"probe-{way}"), means.cards.pid_of, PATIENCE_S)
        if not why:
            life.log.info("cards are given to containers", way=way)
            return way
        failures[way] = why
    life.log.error("cards cannot be given to containers: install the NVIDIA container toolkit", **failures)
    return "none"
