"""What keeps new work out, and what whoever is refused is told to do about it."""

import pytest

from bus.port import Health
from schemas.errors import Refused
from tests.edge.services.world import FakeWorld

WELL = Health(0.1, synced=True, version="")


@pytest.mark.parametrize(
    ("health", "code", "to_do"),
    [
        (WELL._replace(halted=True), "store_full", "restart nats-server"),
        (WELL._replace(used=0.8), "store_full", "give it more space"),
        (WELL._replace(synced=False), "unavailable", "set sync_interval"),
        (WELL._replace(synced=None), "unavailable", "set sync_interval"),
    ],
)
async def test_a_broker_that_is_not_well_takes_no_work(
    fake: FakeWorld, monkeypatch: pytest.MonkeyPatch, health: Health, code: str, to_do: str
) -> None:
    async def answer() -> Health:
        return health

    monkeypatch.setattr(fake.bus.link, "health", answer)
    with pytest.raises(Refused, match=to_do) as caught:
        await fake.gate.check()
    assert caught.value.code == code


async def test_a_broker_that_is_there_and_cannot_be_used_is_not_called_away(fake: FakeWorld) -> None:
    fake.bus.link.cut()
    with pytest.raises(Refused, match="is away: try again"):
        await fake.gate.check()
    fake.bus.link.trouble = "the broker's store is too small: set max_file_store"
    with pytest.raises(Refused, match="set max_file_store"):
        await fake.gate.check()
    fake.bus.link.heal()
    await fake.gate.check()
