"""The contract of AuditStream (bus/interface.py), on the fake and on a real broker."""

from msgspec.structs import replace

from bus.interface import AuditPage, AuditStream, BrokerUnreachable
from schemas.installation import AuditAction, AuditEvent
from tests.support.bus_pairs import BusPair
from tests.support.bus_samples import NOW
from tests.support.wait import wait_for

EVENT = AuditEvent(at=NOW, action=AuditAction.KEY_CREATED, subject="k0", by="k9", client="192.0.2.7")


async def append_five(trail: AuditStream) -> None:
    for number in range(5):
        assert await trail.append(f"event-{number}", replace(EVENT, subject=f"k{number}"))


async def test_an_empty_trail_is_one_empty_page(world: BusPair):
    assert await world.edge.audit_log.page(None, 10) == ((), None)


async def test_events_are_read_newest_first_page_by_page(world: BusPair):
    trail = world.edge.audit_log
    await append_five(trail)
    found, before = [], None
    for _ in range(3):
        page = await trail.page(before, 2)
        found.append([entry.event.subject for entry in page.entries])
        before = page.next_before
    assert found == [["k4", "k3"], ["k2", "k1"], ["k0"]]
    assert before is None


async def test_a_page_keeps_its_place_while_events_are_added(world: BusPair):
    trail = world.edge.audit_log
    await append_five(trail)
    first = await trail.page(None, 3)
    await trail.append("event-5", replace(EVENT, subject="k5"))
    rest = await trail.page(first.next_before, 3)
    assert [entry.event.subject for entry in (*first.entries, *rest.entries)] == ["k4", "k3", "k2", "k1", "k0"]


async def test_an_event_is_stored_once_and_is_not_changed(world: BusPair):
    trail = world.edge.audit_log
    assert await trail.append("event-0", EVENT)
    assert not await trail.append("event-0", replace(EVENT, subject="another"))
    await world.restart()

    async def read() -> AuditPage | None:
        try:
            return await trail.page(None, 10)
        except BrokerUnreachable:
            return None

    assert [entry.event for entry in (await wait_for(read)).entries] == [EVENT]


async def test_bytes_that_are_not_an_event_are_left_out(world: BusPair):
    trail = world.edge.audit_log
    await world.corrupt("$KV.AUDIT.planted", b"no event")
    await trail.append("event-0", EVENT)
    assert [entry.event for entry in (await trail.page(None, 10)).entries] == [EVENT]


async def test_a_row_that_an_earlier_release_wrote_into_the_bucket_is_an_event(world: BusPair):
    old = b'{"at":"2026-11-20T12:00:00Z","action":"host_added","subject":"gpu-1","by":"k9","client":""}'
    await world.corrupt("$KV.AUDIT.1795176000000000-0a1b2c3d", old)
    ((entry,), before) = await world.edge.audit_log.page(None, 10)
    assert (entry.event.action, entry.event.subject, entry.event.details, before) == ("host_added", "gpu-1", {}, None)
