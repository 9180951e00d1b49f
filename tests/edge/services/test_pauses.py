"""Pauses over the fake bus: the first one counts, and other edges learn of it."""

from edge.hosts.registry import PauseRegistry
from tests.support.edge_services import FakeBusServicesRig


async def test_a_second_pause_changes_nothing(fake: FakeBusServicesRig) -> None:
    pauses = fake.hosts.pauses
    await pauses.pause_endpoint("echo", "ops")
    first = pauses.of_endpoint("echo")
    assert first is not None
    assert first.by == "ops"
    fake.time.advance(hours=1)
    await pauses.pause_endpoint("echo", "ann")
    assert pauses.of_endpoint("echo") == first
    assert pauses.of_endpoint("other") is None
    await pauses.resume_endpoint("echo")
    await pauses.resume_endpoint("echo")
    assert pauses.of_endpoint("echo") is None


async def test_another_edge_and_one_that_was_restarted_read_it(fake: FakeBusServicesRig) -> None:
    await fake.hosts.pauses.start_maintenance("gpu-1", "ops")
    other = PauseRegistry(fake.bus, fake.time)
    assert other.hosts_in_maintenance == frozenset()
    await other.refresh()
    assert other.hosts_in_maintenance == {"gpu-1"}
    assert other.of_host("gpu-1") == fake.hosts.pauses.of_host("gpu-1")
    assert other.of_endpoint("gpu-1") is None
    await other.end_maintenance("gpu-1")
    assert other.of_host("gpu-1") is None
